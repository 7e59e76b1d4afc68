"""A recipe run without Ray by processes that `torchrun` starts: one a GPU, on one machine or on several.

    torchrun --nproc-per-node 8 -m pipelines.training.alone RECIPE STORE [STAGE] [FLAGS]

Rank 0 is the driver, and alone makes whatever a stage maps; at each training the others join it. The store
must be one that all of them see. Nothing here starts a lost process again, or does with fewer: the same
command goes on from the last checkpoint, and under Ray nobody need give it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.gang import GangPaused, GangWorker, Member
from cluster.mapping import InlineExecutor
from cluster.resources import Resources, limit_threads, settle

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipelines.config import Recipe

PATIENCE = timedelta(days=30)
"""For which the others wait for a training: what comes before it may take as long."""
END = -1
USAGE = "torchrun --nproc-per-node N -m pipelines.training.alone RECIPE STORE [STAGE] [--STAGE.FIELD VALUE]"


@contextlib.contextmanager
def joined() -> Iterator[Member]:
    """This place among the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), and their
    group. SIGTERM asks to stop: it ends once what it has is safe (`GangPaused`).

    Raises:
        ValueError: it was not started so.
    """
    import torch.distributed

    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise ValueError(
            f"{missing[0]} is not set: start it as `torchrun -m pipelines.training.alone RECIPE STORE`."
        )
    rank, world, here = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    limit_threads(threads)
    accelerated = torch.cuda.is_available()
    if accelerated:
        torch.cuda.set_device(here % torch.cuda.device_count())
    torch.distributed.init_process_group("nccl" if accelerated else "gloo")
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield Member(
            rank=rank,
            world=world,
            event=lambda event: None,
            threads=threads,
            local_rank=here,
            stopping=stop.is_set,
        )
    finally:
        signal.signal(signal.SIGTERM, before)
        torch.distributed.destroy_process_group()


class Call:
    """How rank 0 tells the others which training to join: two numbers, over gloo."""

    def __init__(self) -> None:
        import torch.distributed

        self._group: Any = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def exchange(self, place: int = END, lease: int = 0) -> tuple[int, int]:
        """What rank 0 said: the place of a stage in the plan, and the number of its lease."""
        import torch
        import torch.distributed

        told = torch.tensor([place, lease])
        torch.distributed.broadcast(told, 0, group=self._group)
        place, lease = told.tolist()
        return place, lease


@dataclass
class Driver(InlineExecutor):
    """Rank 0's executor: it maps in its own process, and trains together with the others."""

    member: Member | None = None
    call: Call | None = None
    places: tuple[str, ...] = ()
    """Names of the plan's stages."""

    def gang(
        self,
        worker: GangWorker,
        config: dict[str, Any],
        *,
        resources: Resources,
        name: str,
        on_event: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        assert self.member is not None
        assert self.call is not None
        self.call.exchange(self.places.index(name), config["job"].lease)
        limit_threads(self.member.threads)
        asked = self.member.stopping
        member = replace(self.member, event=on_event, stopping=lambda: asked() or self.paused.is_set())
        return worker(config, member)


class _Joined(Exception):
    """Raised where a training has ended that this process only helped with."""


@dataclass
class Follower:
    """The session (`pipelines.stage.Session`) of another rank: it trains, and writes no result."""

    inputs: Mapping[str, Any]
    output: Storage
    checkpoints: Storage
    scratch: Path
    resources: Resources
    lease: int
    member: Member

    def event(self, event: dict[str, Any]) -> None:
        pass

    def gang(self, worker: GangWorker, config: dict[str, Any]) -> dict[str, Any]:
        limit_threads(self.member.threads)
        worker(config, self.member)
        raise _Joined

    def map(self, factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
        raise ValueError("This stage spreads work before it trains, and cannot run so: use `latentmill run`.")


def run_together(recipe: Recipe, store: Storage, member: Member, *, until: str | None = None) -> None:
    """Runs what the recipe has not done yet, on all ranks; each must call it.

    Raises:
        ValueError, StageError: as `pipelines.pipeline.run`.
        GangPaused: it was told to stop, and what it has is safe.
    """
    from pipelines.pipeline import plan, run

    places = tuple(stage.name for stage in plan(recipe, store).stages)
    call = Call()
    if member.rank == 0:
        driver = Driver(member=member, call=call, places=places)
        run(recipe, store, executor=driver, until=until, listeners=[_say])
        # Not where it failed: the others may be in the middle of a step, and torchrun ends them.
        call.exchange()
        return
    while True:
        place, lease = call.exchange()
        if place == END:
            return
        _follow(recipe, store, places[place], lease, member)


def _follow(recipe: Recipe, store: Storage, name: str, lease: int, member: Member) -> None:
    from cluster.resources import Capacity
    from pipelines.pipeline import plan

    planned = plan(recipe, store)[name]
    stage: Any = planned.stage
    assert planned.folder is not None
    assert planned.checkpoints is not None
    with tempfile.TemporaryDirectory(prefix="latentmill-", ignore_cleanup_errors=True) as scratch:
        session = Follower(
            inputs=planned.open(),
            output=planned.folder,
            checkpoints=planned.checkpoints,
            scratch=Path(scratch),
            resources=settle(stage.resources, Capacity.here(), shape="gang", accelerated=stage.accelerated),
            lease=lease,
            member=member,
        )
        with contextlib.suppress(_Joined):
            stage.run(session)


def _say(event: dict[str, Any]) -> None:
    """One line a thing worth knowing, on the standard output."""
    if event["kind"] == "metrics" and "images_per_second" in event["values"]:
        values = event["values"]
        said = f"loss {values['loss']:.4f}, {values['images_per_second']:.4g} images/s"
        print(f"{event['stage']}: {event['step']:,} images, {said}", flush=True)
    elif event["kind"] in ("stage_start", "stage_end", "run_end", "note"):
        words = (event["kind"].replace("_", " "), event.get("state"), event.get("text"), event.get("error"))
        print(f"{event['stage']}: {', '.join(word for word in words if word)}", flush=True)


def main(arguments: Sequence[str]) -> int:
    from cluster.storage import Storage
    from pipelines import config

    first = next((n for n, a in enumerate(arguments) if a.startswith("--")), len(arguments))
    named, flags = arguments[:first], arguments[first:]
    if len(named) not in (2, 3):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        recipe = config.load(named[0], flags)
        with joined() as member:
            run_together(recipe, Storage.at(named[1]), member, until=named[2] if len(named) > 2 else None)
    except GangPaused as pause:
        print(pause, file=sys.stderr)
        return 75
    except ValueError as mistake:
        print(mistake, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
