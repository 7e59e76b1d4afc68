"""Where a training's time goes: steps that counted, and everything else by its kind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.gang import Member
    from cluster.storage import Storage


class Account:
    """One worker's clock, from the start of its attempt; only rank 0 writes it down.

    At any moment time belongs to one category: "start" until the first step has ended but for what is named
    within it, then "step"; `spent` names others for a while, the inner of two.
    """

    def __init__(self, storage: Storage, member: Member, *, lease: int) -> None:
        self.storage, self.member, self.lease = storage, member, lease

    @contextlib.contextmanager
    def spent(self, category: str) -> Iterator[None]:
        """The block's time is of that category: restore, data, checkpoint, look."""
        yield

    def stepped(self, images_seen: int) -> None:
        """A step has ended."""

    def saved(self, images_seen: int) -> None:
        """What led there is safe: it is not lost with this attempt."""

    def values(self) -> dict[str, float]:
        """For the record as training goes: goodput, and badput by category, as shares."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Of all attempts, for the snapshot's record."""
        return {}
