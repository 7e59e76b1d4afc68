"""What a stage asks of the machines it runs on, and what they have."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Decides how fast a stage runs, never what comes out of it."""

    cpus: float | None = None
    """CPUs of one worker; torch uses as many threads. If None: one for a pool's worker, and for training the
    machine's, shared among its workers."""
    gpus: float | None = None
    """GPUs of one worker; if None, one where there are GPUs and the stage can use one."""
    workers: int | None = None
    """Parallel workers; for shard stages as many as fit if None, for training one."""
    min_workers: int | None = None
    """Of a training that goes on with fewer workers while machines are away: the fewest; all of them if None.
    What comes out is that of a training whose workers come and go: the same samples in the same order."""
    memory: int | None = None
    """Bytes of one worker that Ray sets aside; unlimited if None."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"resources.workers is {self.workers}; it must be at least 1.")
        if self.min_workers is not None and not 1 <= self.min_workers <= (self.workers or 1):
            raise ValueError(
                f"resources.min_workers is {self.min_workers}; it must be 1 to resources.workers, "
                f"{self.workers or 1}."
            )
        if self.cpus is not None and self.cpus <= 0:
            raise ValueError(f"resources.cpus is {self.cpus}; it must be above 0.")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"resources.gpus is {self.gpus}; it must be 0 or more.")

    @property
    def threads(self) -> int:
        """Torch threads of one worker."""
        return max(1, int(self.cpus or 1))

    def running(self, capacity: Capacity) -> int:
        """Workers that a settled request has at once: an elastic training's are as many as there is room
        for."""
        workers = self.workers or 1
        if self.min_workers is None:
            return workers
        return max(self.min_workers, min(workers, capacity.fit(self.cpus or 1.0, self.gpus or 0.0)))


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What an executor's machines have together."""

    cpus: float
    gpus: float = 0.0
    nodes: tuple[tuple[float, float], ...] = ()
    """(CPUs, GPUs) of each machine; one has all where none is named. A worker lies on one machine."""

    @classmethod
    def of(cls, nodes: Iterable[tuple[float, float]]) -> Capacity:
        """Of several machines."""
        each = tuple(sorted((node for node in nodes if any(node)), reverse=True))
        return cls(cpus=sum(cpus for cpus, _ in each), gpus=sum(gpus for _, gpus in each), nodes=each)

    def fit(self, cpus: float, gpus: float = 0.0) -> int:
        """Workers of that size that run at once."""
        each = self.nodes or ((self.cpus, self.gpus),)
        return sum(
            int(min(has_cpus / cpus, has_gpus / gpus if gpus else math.inf)) for has_cpus, has_gpus in each
        )

    @classmethod
    def here(cls) -> Capacity:
        """This machine's CPUs, as far as this process may use them."""
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return cls(cpus=float(count or 1))


def settle(
    asked: Resources, capacity: Capacity, *, shape: Literal["pool", "gang"], accelerated: bool = False
) -> Resources:
    """The request with every None decided for these machines.

    Args:
        shape: "pool" has one CPU a worker and as many workers as fit; "gang" one worker with all CPUs.
        accelerated: whether the stage runs faster on a GPU.

    Raises:
        ValueError: one worker alone asks for more than there is.
    """
    gpus = asked.gpus
    if gpus is None:
        gpus = 1.0 if accelerated and capacity.gpus >= 1 else 0.0
    cpus, workers = asked.cpus, asked.workers
    if shape == "gang":
        workers = workers or 1
        # An elastic training's workers are as large as those of the whole: only their number changes.
        cpus = cpus or _share(capacity, workers, gpus)
    else:
        cpus = cpus or (_share(capacity, workers, gpus) if workers else 1.0)
        fit = max(1, capacity.fit(cpus, gpus))
        workers = min(workers, fit) if workers else fit
    if not capacity.fit(cpus, gpus):
        most = max(capacity.nodes, default=(capacity.cpus, capacity.gpus))
        raise ValueError(
            f"One worker asks for {cpus:g} CPUs and {gpus:g} GPUs, and the largest machine has {most[0]:g} "
            f"and {most[1]:g}: lower resources.cpus or resources.gpus."
        )
    return dataclasses.replace(asked, cpus=cpus, gpus=gpus, workers=workers)


def _share(capacity: Capacity, workers: int, gpus: float) -> float:
    """The most whole CPUs that each of so many workers can have at once; 1 where not all of them fit."""
    largest = int(max((cpus for cpus, _ in capacity.nodes), default=capacity.cpus))
    fitting = (float(cpus) for cpus in range(largest, 1, -1) if capacity.fit(cpus, gpus) >= workers)
    return next(fitting, 1.0)


def limit_threads(threads: int) -> None:
    """Torch's threads, where torch is loaded, and those of what loads later (it reads OMP_NUM_THREADS)."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
