"""What ranks tell one another about a checkpoint, from the thread that trains and never from another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WORDS = 256
"""Bytes of a reason that travel."""
FINE, BAD, FAILED = 2, 1, 0
"""How something went on a rank; the least of all ranks counts."""


class Together:
    """One of the default process group's ranks, all of which must ask alike; alone it asks nobody."""

    def __init__(self, *, rank: int, world: int, tensors: Iterable[Tensor]) -> None:
        """`tensors`: of the training, by whose device messages travel where the network asks for one."""
        self.rank, self.world = rank, world
        self._places = {tensor.device for tensor in tensors if tensor.is_cuda}

    def first(self, data: bytes) -> bytes:
        """Rank 0's bytes, on all ranks."""
        if self.world == 1:
            return data
        import torch

        length = int(self._sent(torch.tensor([len(data)])).item())
        mine = torch.zeros(length, dtype=torch.uint8)
        if self.rank == 0 and length:
            mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return self._sent(mine).cpu().numpy().tobytes()

    def worst(self, outcome: int, words: str) -> tuple[int, str]:
        """The least outcome of any rank, and what the first rank that has it says of it."""
        if self.world == 1:
            return outcome, words
        import torch
        import torch.distributed

        found = self._placed(torch.tensor([outcome * self.world + self.rank]))
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MIN)
        least, speaker = divmod(int(found.item()), self.world)
        if least == FINE:
            return least, ""
        text = bytearray(words.encode()[:WORDS].ljust(WORDS))
        said = self._sent(torch.frombuffer(text, dtype=torch.uint8), source=speaker)
        return least, said.cpu().numpy().tobytes().decode(errors="replace").rstrip()

    def _sent(self, tensor: Tensor, *, source: int = 0) -> Tensor:
        import torch.distributed

        tensor = self._placed(tensor)
        torch.distributed.broadcast(tensor, source)
        return tensor

    def _placed(self, tensor: Tensor) -> Tensor:
        import torch.distributed

        if torch.distributed.get_backend() != "nccl":
            return tensor
        return tensor.to(next(iter(self._places), "cuda"))
