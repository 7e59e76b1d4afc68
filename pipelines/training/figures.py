"""What is measured of the steps, beside their loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cluster.gang import Member
    from pipelines.training.tasks.task import Task


class Figures:
    """Kept on every rank, told by rank 0; nothing here waits for the device but `values`."""

    def __init__(self, task: Task, *, member: Member, device: torch.device, precision: str) -> None:
        self.task, self.member, self.device, self.precision = task, member, device, precision

    def see(self, share: Any, losses: Tensor) -> None:
        """The per-sample losses of a share, as they are computed."""

    def values(self, *, images: int, seconds: float) -> dict[str, float]:
        """Since the last call, in which all ranks together saw so many images in so many seconds."""
        return {}
