"""Workers that train together: one in this process, or several under Ray Train.

Ray Train starts and restarts the processes and forms their process group. It is never given a checkpoint:
the worker function takes the newest valid one from its own store, and `report()` is not on its path. Events
travel from rank 0 through a small actor to the driver, without the training step ever waiting for them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.resources import Resources

RESTARTS = 3
"""How often a gang that lost a worker starts again before the stage fails."""
POLL = 0.5
"""Seconds between two looks of the driver at the gang's events."""
WAITING = 10_000
"""Events that wait for the driver at most; older ones are dropped first."""


class GangStopped(Exception):
    """Raised in a worker that the driver no longer wants."""


class GangPaused(Exception):
    """Raised by a worker that was told to end, once what it has is safe: another run goes on from there."""


FINAL = (
    GangStopped,
    GangPaused,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    AssertionError,
    NotImplementedError,
)
"""What would fail again: for these a gang ends, for a lost process or connection it starts again."""


@dataclass(frozen=True)
class Member:
    """What a worker knows of its gang."""

    rank: int
    world: int
    event: Callable[[dict[str, Any]], None]
    """Tells the driver; returns at once. Ranks above 0 are heard as well, but should keep silent."""
    threads: int
    """Torch threads of this worker, already set."""
    local_rank: int = 0
    """Among the workers on its machine."""
    attempt: int = 0
    """How often the gang was started before."""
    beat: Callable[[int], None] = lambda done: None
    """Shows that this worker lives, and how far it is; returns at once. For every rank, at every step."""
    stopping: Callable[[], bool] = lambda: False
    """Whether it was told to make safe what it has and end soon: a preempted node, a run that is stopped."""


GangWorker = Callable[[dict[str, Any], Member], dict[str, Any]]


def run_alone(
    worker: GangWorker, config: dict[str, Any], *, threads: int, on_event: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """A gang of one in this process: no process group, events arrive as they are sent."""
    return worker(config, Member(rank=0, world=1, event=on_event, threads=threads))


def run_gang(
    worker: GangWorker,
    config: dict[str, Any],
    *,
    resources: Resources,
    name: str,
    on_event: Callable[[dict[str, Any]], None],
    storage_path: str,
    cancelled: threading.Event,
) -> dict[str, Any]:
    """A gang under Ray Train; waits for its end, and starts it again when it loses a worker.

    Args:
        name: shown in the dashboard; a suffix is added, so that no attempt finds an older one's state.
        cancelled: ends the gang early when it is set: its workers stop at their next event.
        storage_path: where Ray Train keeps its own notes: a folder that every node sees, or a URL.

    Raises:
        Exception: what the worker function raised.
        RuntimeError: the gang could not be started, or lost a worker more than `RESTARTS` times.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if cancelled.is_set():
        raise GangStopped(f"{name} was interrupted.")
    run = f"{name}-{time.time_ns():x}"
    # Beside the driver: a node that is lost takes workers away, and not what they have told.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "name": f"events of {run}", "scheduling_strategy": here}
    # Its calls are many, and would hide the work from those who look at the dashboard.
    options["enable_task_events"] = False
    mailbox: Any = ray.remote(Mailbox).options(**options).remote()
    each = {"CPU": resources.cpus or 1.0}
    if resources.gpus:
        each["GPU"] = resources.gpus
    if resources.memory:
        each["memory"] = resources.memory
    threads = resources.threads
    trainer = TorchTrainer(
        _enter,
        train_loop_config={
            "worker": worker,
            "config": config,
            "threads": threads,
            "mailbox": mailbox,
            "name": name,
        },
        scaling_config=ScalingConfig(
            num_workers=resources.workers or 1, use_gpu=bool(resources.gpus), resources_per_worker=each
        ),
        torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
        run_config=RunConfig(
            name=run,
            storage_path=storage_path,
            failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=RESTARTS),
        ),
    )
    stop = threading.Event()
    failed: list[BaseException] = []

    def follow() -> None:
        try:
            while not stop.wait(POLL):
                if cancelled.is_set():
                    raise GangStopped(f"{name} was interrupted.")
                for event in ray.get(mailbox.take.remote()):
                    on_event(event)
        except BaseException as error:
            failed.append(error)
            ray.get(mailbox.give_up.remote(GangStopped(str(error))))

    follower = threading.Thread(target=follow, name=f"events of {name}", daemon=True)
    follower.start()
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from None
    finally:
        stop.set()
        follower.join()
    for event in ray.get(mailbox.take.remote()):
        on_event(event)
    final: Any = ray.get(mailbox.final.remote())
    ray.kill(mailbox)
    for error in (*failed, final):
        if error is not None:
            raise error
    return result.return_value or {}


class Mailbox:
    """Where a gang's events wait for the driver, and the error that makes another attempt useless."""

    def __init__(self) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=WAITING)
        self.error: BaseException | None = None

    def give_up(self, error: BaseException) -> None:
        self.error = self.error or error

    def final(self) -> BaseException | None:
        return self.error

    def put(self, event: dict[str, Any]) -> bool:
        """Whether the gang is still wanted."""
        self.events.append(event)
        return self.error is None

    def take(self) -> list[dict[str, Any]]:
        taken = list(self.events)
        self.events.clear()
        return taken


def _enter(loop: dict[str, Any]) -> dict[str, Any]:
    """Runs in each worker of Ray Train, and again in each attempt."""
    import ray
    import ray.train
    import torch

    mailbox = loop["mailbox"]
    if ray.get(mailbox.final.remote()) is not None:
        return {}
    torch.set_num_threads(loop["threads"])
    context = ray.train.get_context()
    last: list[Any] = []

    def event(told: dict[str, Any]) -> None:
        if last and ray.wait(last, timeout=0)[0] and not ray.get(last.pop()):
            raise GangStopped(loop["name"])
        last[:] = [mailbox.put.remote(told)]

    member = Member(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        event=event,
        threads=loop["threads"],
    )
    try:
        return loop["worker"](loop["config"], member)
    except FINAL as error:
        ray.get(mailbox.give_up.remote(error))
        if member.world == 1:
            return {}
        raise  # so that Ray Train takes the others down, which wait for this one


def _cause(error: Exception) -> Exception:
    """The worker's own exception, if Ray Train carries one of a kind that says more than its wrapper."""
    for failure in (getattr(error, "worker_failures", None) or {}).values():
        inner = getattr(failure, "cause", None) or failure
        if isinstance(inner, Exception):
            return inner
    return error
