"""What any worker wishes, all do at the same step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Agreement:
    """Wishes of one step are known to all ranks after the next: nobody waits for their exchange.

    Every rank must call `exchange` after every step, in the same order as its other collectives.
    """

    def __init__(self, words: Sequence[str], *, world: int) -> None:
        """`words`: all that can be wished."""
        self._words = tuple(words)
        self._group: Any = None
        self._pending: tuple[torch.distributed.Work, torch.Tensor] | None = None
        if world > 1:
            import torch.distributed

            # On the CPU whatever the gradients travel by: no wish waits for a device.
            self._group = torch.distributed.new_group(backend="gloo")

    def exchange(self, wishes: Iterable[str]) -> frozenset[str]:
        """Tells this rank's wishes; gives those that any rank told one call before (of one rank: at once)."""
        mine = frozenset(wishes)
        if self._group is None:
            return mine
        import torch
        import torch.distributed

        agreed: frozenset[str] = frozenset()
        if self._pending is not None:
            work, votes = self._pending
            work.wait()
            agreed = frozenset(word for word, vote in zip(self._words, votes.tolist(), strict=True) if vote)
        votes = torch.tensor([float(word in mine) for word in self._words])
        told = torch.distributed.all_reduce(
            votes, op=torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        assert told is not None
        self._pending = (told, votes)
        return agreed

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers, as many of each, on every rank: all must ask at the same step."""
        if self._group is None:
            return [list(values)]
        import torch
        import torch.distributed

        mine = torch.tensor(values, dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(self._group))]
        torch.distributed.all_gather(found, mine, group=self._group)
        return [row.tolist() for row in found]

    def close(self) -> None:
        """Ends what is still on its way; for all ranks together, before they part. Wishes not yet heard are
        lost."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None


def heard(data: bytes, *, rank: int, world: int) -> bytes:
    """Rank 0's bytes, on every rank: all must ask together, and only rank 0's own `data` counts."""
    if world == 1:
        return data
    import torch
    import torch.distributed

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    size = torch.tensor([len(data)], device=device)
    torch.distributed.broadcast(size, 0)
    told = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if rank == 0:
        told.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    torch.distributed.broadcast(told, 0)
    return bytes(told.cpu().numpy())
