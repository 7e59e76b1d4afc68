"""Looks at a training's averaged weights, pictures and KID: made between two steps, or by a worker beside.

Both give the same for equal seeds, as far as float arithmetic is the same: the worker beside has one thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.beside import Beside, spare

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cluster.gang import Member
    from cluster.storage import Storage
    from pipelines.training.job import Job
    from pipelines.training.tasks.task import Task

PICTURE, KID = "picture", "kid"
"""What can be looked at."""
PATIENCE = 1800.0
"""Seconds that one look beside may take."""
LAST = 4.0
"""How much longer than the longest so far the last look may take, for which the training waits."""
LEAST = 60.0
"""Seconds that it is waited for in any case."""
BEAT = 1.0

Seen = tuple[int, dict[str, Any]]
"""Images seen, and what a look at that point gave (`see`)."""


def see(task: Task, module: nn.Module, wanted: Sequence[str]) -> dict[str, Any]:
    """png: a picture. values: figures by name. about: what they are of. JSON types and bytes, only what there
    is."""
    from pipelines.training.tasks.task import Judged

    seen: dict[str, Any] = {}
    if PICTURE in wanted and (png := task.picture(module)) is not None:
        seen["png"] = png
    if KID in wanted and isinstance(task, Judged):
        seen["values"], seen["about"] = task.judge(module), task.about()
    return seen


@dataclass(frozen=True)
class Onlooker:
    """Opens the task once more, in a worker beside."""

    job: Job

    def __call__(self) -> Any:
        import torch

        from pipelines.training.job import opened

        job = self.job
        task = opened(job, torch.device("cuda" if torch.cuda.is_available() else "cpu"), 2)
        module = task.module.eval().requires_grad_(False)

        def look(message: dict[str, Any]) -> dict[str, Any]:
            from safetensors.torch import load

            module.load_state_dict(load(_weights(job).read(message["file"])))
            return see(task, module, message["wanted"])

        return look


@dataclass(frozen=True, eq=False)
class _Look:
    images_seen: int
    wanted: Sequence[str]
    tensors: dict[str, Tensor]
    """On the host, and nobody else's."""


class Looks:
    """Of rank 0."""

    def __init__(self, job: Job, member: Member, task: Task) -> None:
        self._job, self._member, self._task = job, member, task
        self._beside: Beside | None = None
        self._told = False
        self._seen: list[Seen] = []
        self._last = -1
        """Of what was seen, the furthest."""
        if member.rank == 0 and _aside(job):
            storage = _weights(job)
            for name in storage.list():  # of a training that was killed
                storage.delete(name)
            self._beside = Beside(
                Onlooker(job), name="looks", patience=PATIENCE, prepare=self._file, done=self._unfile
            )

    @property
    def skipped(self) -> int:
        """Looks that were left out, because the worker beside was not done with an older one, or is lost."""
        return 0 if self._beside is None else self._beside.skipped

    def look(self, images_seen: int, averaged: nn.Module, wanted: Sequence[str]) -> None:
        """At the averaged weights now, which are copied first where a worker beside looks."""
        if self._beside is None:
            self._here(images_seen, averaged, wanted)
            return
        state = averaged.state_dict()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
        self._beside.offer(_Look(images_seen, tuple(wanted), copies))

    def seen(self) -> list[Seen]:
        """What looks gave since the last call, in their order; returns at once."""
        if self._beside is not None:
            self._seen += [(look.images_seen, found) for look, found in self._beside.answers()]
            self._tell()
        found, self._seen = self._seen, []
        self._last = max([self._last, *(images_seen for images_seen, _ in found)])
        return found

    def finish(self, images_seen: int, averaged: nn.Module, wanted: Sequence[str]) -> list[Seen]:
        """What is left to see, the last look at any rate: here, where the worker beside has failed at it."""
        found = self.seen()
        if self._beside is not None:
            self._wait(self._beside, images_seen)
            found += self.seen()
            self.close()
        if self._last < images_seen:
            self._here(images_seen, averaged, wanted)
            found += self.seen()
        return found

    def _wait(self, beside: Beside, images_seen: int) -> None:
        # The first look opens the datasets, too: nothing says how long that takes.
        patience = max(LEAST, LAST * beside.longest) if beside.longest else PATIENCE
        start = time.monotonic()
        while time.monotonic() - start < patience:
            self._member.beat(images_seen)
            if beside.wait(BEAT):
                return
        self._note(f"it was not done {patience:.0f} s after the training")

    def close(self) -> None:
        """Ends the worker beside at once."""
        if self._beside is not None:
            self._beside.close()

    def _here(self, images_seen: int, averaged: nn.Module, wanted: Sequence[str]) -> None:
        self._seen.append((images_seen, see(self._task, averaged, wanted)))

    def _tell(self) -> None:
        if self._beside is not None and self._beside.fault is not None:
            self._note(self._beside.fault)

    def _note(self, fault: str) -> None:
        if not self._told:
            self._told = True
            text = f"The worker beside the training is lost: {fault}. Of its looks only the last is made."
            self._member.event({"kind": "note", "text": text})

    def _file(self, look: _Look) -> dict[str, Any]:
        from safetensors.torch import save

        name = f"{look.images_seen:012d}-{self._job.lease:06d}.safetensors"
        _weights(self._job).replace(name, save(look.tensors))
        return {"file": name, "wanted": list(look.wanted)}

    def _unfile(self, message: dict[str, Any]) -> None:
        _weights(self._job).delete(message["file"])


def _weights(job: Job) -> Storage:
    """Where the worker beside finds what it is to look at: any machine sees it."""
    return job.checkpoints.folder("looks")


def _aside(job: Job) -> bool:
    """As it is told, else where the cluster has a CPU free, and a GPU where the training has some."""
    if job.training.beside is not None:
        return job.training.beside
    return spare(cpus=1, gpus=1 if job.training.accelerated else 0)
