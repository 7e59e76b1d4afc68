"""Boxes of tensors: which part of a state a rank holds, which of it that rank writes, and what two share.

A plain tensor is whole and equal on all ranks; one that FSDP2 cut is a box of rows on each, equal on the
ranks that are replicas of each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.training.checkpoints.mark import Damaged

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK = 8 << 20
"""Bytes that are digested, and so read, at once, and the unit in which ranks share the writing."""

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The file format's word -> torch's."""


def dtype_of(word: str) -> torch.dtype:
    import torch

    if word not in DTYPES:
        raise Damaged(f"has numbers of a kind {word!r} that is not known here")
    return getattr(torch, DTYPES[word])


def word_of(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    for word, known in DTYPES.items():
        if known == name:
            return word
    raise ValueError(f"a tensor of {tensor.dtype} cannot be stored in a checkpoint.")


@dataclass(frozen=True)
class Box:
    """Rows, columns, ... of a tensor: where it begins in each dimension, and how far it goes."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        return Box((0,) * len(shape), tuple(shape))

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def inside(self, shape: tuple[int, ...]) -> bool:
        """Whether it is part of a tensor of that shape."""
        return len(self.offsets) == len(self.shape) == len(shape) and all(
            offset >= 0 and length >= 0 and offset + length <= size
            for offset, length, size in zip(self.offsets, self.shape, shape, strict=True)
        )

    def overlap(self, other: Box) -> Box | None:
        """What both hold; None where that is nothing."""
        offsets = tuple(map(max, self.offsets, other.offsets))
        ends = (
            min(a + n, b + m)
            for a, n, b, m in zip(self.offsets, self.shape, other.offsets, other.shape, strict=True)
        )
        shape = tuple(end - offset for end, offset in zip(ends, offsets, strict=True))
        return Box(offsets, shape) if all(length > 0 for length in shape) else None

    def within(self, holder: Box) -> tuple[slice, ...]:
        """Where it lies in a box that holds it."""
        return tuple(
            slice(offset - start, offset - start + length)
            for offset, length, start in zip(self.offsets, self.shape, holder.offsets, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A box of a tensor that lies in one run of bytes."""

    tensor: str
    dtype: str
    """In the file format's word."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    box: Box

    @property
    def key(self) -> str:
        """Under which it stands in a file: the tensor's name, with the ranges where it is not all of it."""
        if self.box == Box.whole(self.shape):
            return self.tensor
        ranges = (f"{o}:{o + n}" for o, n in zip(self.box.offsets, self.box.shape, strict=True))
        return f"{self.tensor}[{','.join(ranges)}]"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.box.numel * dtype_of(self.dtype).itemsize


class Layout:
    """Where the tensors of one state lie on this rank."""

    def __init__(self, *, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._known: dict[Any, Box] = {}

    def box(self, tensor: Any) -> Box:
        """What of a tensor is on this rank."""
        from diffusion import sharding

        if not sharding.sharded(tensor):
            return Box.whole(tuple(tensor.shape))
        key = (tuple(tensor.shape), tensor.placements, id(tensor.device_mesh))
        if key not in self._known:
            from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

            shape, offsets = compute_local_shape_and_global_offset(
                tensor.shape, tensor.device_mesh, tensor.placements
            )
            self._known[key] = Box(tuple(offsets), tuple(shape))
        box = self._known[key]
        if box.shape != tuple(sharding.local(tensor).shape):
            raise ValueError(f"a tensor laid out as {tensor.placements} cannot be stored in a checkpoint.")
        return box

    def holders(self, tensor: Any) -> tuple[int, int]:
        """Which this rank is of how many that hold the same of a tensor."""
        from diffusion import sharding

        if not sharding.sharded(tensor):
            return self.rank, self.world
        mesh, place, count = tensor.device_mesh, 0, 1
        for size, coordinate, placement in zip(
            mesh.shape, mesh.get_coordinate(), tensor.placements, strict=True
        ):
            if placement.is_replicate():
                place, count = place * size + coordinate, count * size
        return place, count

    def share(self, tensors: Mapping[str, Tensor]) -> list[tuple[Piece, Tensor]]:
        """What this rank writes of a state, with the live memory of it.

        Ranks that hold the same share it by bytes: laid out in a line, each takes a stretch of it. In the
        order of a file: the widest numbers first, so that each is aligned.
        """
        lines: dict[tuple[int, int], list[tuple[Piece, Tensor]]] = {}
        for name in sorted(tensors):
            lines.setdefault(self.holders(tensors[name]), []).extend(self._chunks(name, tensors[name]))
        chosen = []
        for (place, count), line in lines.items():
            total, position = max(1, sum(piece.size for piece, _ in line)), 0
            for piece, memory in line:
                if min(count - 1, (2 * position + piece.size) * count // (2 * total)) == place:
                    chosen.append((piece, memory))
                position += piece.size
        return sorted(chosen, key=lambda pair: (-pair[1].itemsize, pair[0].key))

    def _chunks(self, name: str, tensor: Tensor) -> Iterator[tuple[Piece, Tensor]]:
        """The rank's box of a tensor, in pieces of about `CHUNK` bytes along its first real dimension."""
        from diffusion import sharding

        memory, box, shape = sharding.local(tensor).detach(), self.box(tensor), tuple(tensor.shape)
        if box.numel == 0 and math.prod(shape):
            return
        word = word_of(memory)
        along = next((n for n, length in enumerate(box.shape) if length > 1), None)
        rows = 1 if along is None else box.shape[along]
        step = max(1, CHUNK * rows // max(1, memory.numel() * memory.itemsize))
        if along is None or step >= rows:
            yield Piece(tensor=name, dtype=word, shape=shape, box=box), memory
            return
        for start in range(0, rows, step):
            length = min(step, rows - start)
            offsets, sizes = list(box.offsets), list(box.shape)
            offsets[along], sizes[along] = offsets[along] + start, length
            piece = Piece(tensor=name, dtype=word, shape=shape, box=Box(tuple(offsets), tuple(sizes)))
            yield piece, memory.narrow(along, start, length)
