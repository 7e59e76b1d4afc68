"""Steps that harm a training: found, gone back from, and left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.training.config import GuardConfig

if TYPE_CHECKING:
    from cluster.gang import Member
    from cluster.storage import Storage
    from diffusion.training import Progress


class RollBack(Exception):
    """Raised on all ranks at the same step: the attempt is to begin anew from an older checkpoint."""


class Guard:
    """Asked after every step on every rank; all come to the same verdict, as the gradient's norm is one."""

    def __init__(self, config: GuardConfig, storage: Storage, member: Member, *, batch: int) -> None:
        self.config, self.storage, self.member, self.batch = config, storage, member, batch

    def skipped(self, images_seen: int) -> bool:
        """Whether the batch that begins there is left out, on account of an earlier rollback."""
        return False

    def usable(self, images_seen: int) -> bool:
        """Whether a checkpoint of that place is from before the harm."""
        return True

    def step(self, progress: Progress) -> None:
        """Raises `RollBack`, or `ValueError` where going back has not helped."""

    def facts(self) -> dict[str, Any]:
        """For the snapshot's record: what was left out, and why."""
        return {}
