"""What is measured of the steps: their loss, also by time, how much they compute, and what they take."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.training.peaks import peak
from pipelines.training.work import Counted

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from cluster.gang import Member
    from pipelines.training.tasks.task import Task

Gather = Callable[[Sequence[float]], Sequence[Sequence[float]]]
"""Every rank's numbers, for every rank: all must ask together."""
BINS = 8
"""Of the times, 0 to 1, by which the loss is told apart."""
BY_TIME = "loss_by_time"
GIBIBYTE = 2**30


class Figures:
    """Kept on every rank, told by rank 0; nothing here waits for the device but `values`.

    Losses that are not finite are left out of all means: what they did is told by the steps skipped.
    """

    def __init__(self, task: Task, *, member: Member, device: torch.device, precision: str) -> None:
        self.task, self.member, self.device = task, member, device
        self._losses: list[Tensor] = []
        self._times: list[Tensor] = []
        self._work: float | None = 0.0
        self._peak = None
        self._utilisation = None
        if device.type == "cuda":
            import torch

            self._peak = peak(torch.cuda.get_device_name(device), precision=precision)
            self._utilisation = _utilisation(device)

    def see(self, share: Any, losses: Tensor) -> None:
        """The per-sample losses [n] of a share, as they are computed: kept where they are, and not read."""
        self._losses.append(losses)
        times = getattr(share, "t", None)
        if times is not None and times.shape == losses.shape:
            self._times.append(times)
        if self._work is not None:
            work = self.task.work(share) if isinstance(self.task, Counted) else None
            self._work = None if work is None else self._work + work

    def values(self, *, images: int, since: float, gather: Gather) -> dict[str, float]:
        """Since the last call, at `since` of the monotonic clock, after which all ranks together saw so many
        images; all ranks must ask together.

        loss: mean over all samples. loss_by_time/...: of those whose time is in a bin. images_per_second.
        tflops: what the model needs (`Counted.work`), in TFLOP/s of one worker. share_of_peak: that over what
        its GPU computes at most, where that is known. gpu_utilisation: share of the time in which the GPU did
        anything at all, mean over workers. memory_gib: of the worker that takes the most, on the GPU since
        the start, or of the process now.
        """
        sums, counts = self._sums()
        # Now that the device is where the host is: it may be seconds behind.
        seconds = max(time.monotonic() - since, 1e-9)
        work = math.nan if self._work is None else self._work
        busy = math.nan if self._utilisation is None else self._utilisation()
        ranks = gather([*sums, *counts, work, busy, self._memory()])
        self._losses, self._times = [], []
        self._work = None if self._work is None else 0.0

        totals = [sum(column) for column in zip(*ranks, strict=True)]
        sums, counts = totals[: BINS + 1], totals[BINS + 1 : 2 * BINS + 2]
        work, busy = totals[-3], totals[-2]
        names = ["loss", *(f"{BY_TIME}/{n / BINS:.3f}-{(n + 1) / BINS:.3f}" for n in range(BINS))]
        values = {
            name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count
        }
        values["images_per_second"] = images / seconds
        if work > 0:  # false for nan
            values["tflops"] = work / seconds / len(ranks) / 1e12
            if self._peak is not None:
                values["share_of_peak"] = work / seconds / len(ranks) / self._peak
        if not math.isnan(busy):
            values["gpu_utilisation"] = busy / len(ranks)
        return values | {"memory_gib": max(row[-1] for row in ranks)}

    def _sums(self) -> tuple[list[float], list[float]]:
        """Sum and number of this rank's finite losses: of all, then by bin."""
        import numpy as np

        if not self._losses:
            return [0.0] * (BINS + 1), [0.0] * (BINS + 1)
        losses = _read(self._losses)
        finite = np.isfinite(losses)
        # Of a task whose samples have times, all have.
        times = _read(self._times) if self._times else np.zeros(0)
        place = np.full(len(losses), BINS)
        if len(times) == len(losses):
            place = np.clip((times * BINS).astype(np.int64), 0, BINS - 1)
        place, losses = place[finite], losses[finite]
        sums = np.bincount(place, losses, BINS + 1)[:BINS]
        counts = np.bincount(place, minlength=BINS + 1)[:BINS]
        return [float(losses.sum()), *sums.tolist()], [float(len(losses)), *map(float, counts.tolist())]

    def _memory(self) -> float:
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device) / GIBIBYTE
        import psutil

        return psutil.Process().memory_info().rss / GIBIBYTE


def _read(tensors: Sequence[Tensor]) -> np.ndarray:
    """float64 [n]; waits for the device once."""
    import torch

    return torch.cat([tensor.detach().flatten() for tensor in tensors]).cpu().double().numpy()


def _utilisation(device: torch.device) -> Callable[[], float] | None:
    """Share of the last second in which a kernel ran, by NVML: None without its package, `nvidia-ml-py`."""
    import torch

    def ask() -> float:
        with contextlib.suppress(Exception):  # a driver that does not tell; never the training's trouble
            return torch.cuda.utilization(device) / 100
        return math.nan

    return None if math.isnan(ask()) else ask
