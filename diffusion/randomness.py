"""Random numbers as a function of what they are for, never of when, where or in which batch they are drawn.

Each number is f(seed, stream, position): the position is a sample's place in the training stream or an
image's index; the stream's name keeps numbers with different uses apart. Philox is counter-based (Salmon et
al., 2011), so any position is reached at once, and a resumed or redistributed run draws what an unbroken one
would have drawn.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def generator(seed: int, position: int, stream: str) -> np.random.Generator:
    """The generator of one position of a stream; the next position's numbers start 2^66 numbers later."""
    return np.random.Generator(np.random.Philox(key=_key(seed, stream), counter=[0, position, 0, 0]))


def normal(
    seed: int, positions: Int[np.ndarray, " b"], shape: Sequence[int], stream: str = "noise"
) -> Float[Tensor, "b ..."]:
    """Standard normal fp32 noise, [b, *shape]."""
    drawn = np.empty((len(positions), math.prod(shape)), dtype=np.float32)
    for row, position in zip(drawn, positions.tolist(), strict=True):
        generator(seed, position, stream).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(drawn).reshape(-1, *shape)


@dataclass(frozen=True, eq=False)
class Draws:
    """Noise for samplers that draw on their way: of each row by its position, a stream for each draw."""

    seed: int
    positions: Int[np.ndarray, " b"]
    shape: Sequence[int]
    """Of one row."""
    device: torch.device | str = "cpu"
    stream: str = "draw"

    def __call__(self, number: int) -> Float[Tensor, "b ..."]:
        return normal(self.seed, self.positions, self.shape, f"{self.stream} {number}").to(self.device)


def uniform(seed: int, positions: Int[np.ndarray, " b"], stream: str) -> Float[Tensor, " b"]:
    """Uniform fp32 numbers in the open interval (0, 1)."""
    return _open(np.array([generator(seed, p, stream).random() for p in positions.tolist()]))


def stratified(
    seed: int, positions: Int[np.ndarray, " b"], batch: int, stream: str = "times"
) -> Float[Tensor, " b"]:
    """Uniform fp32 numbers in (0, 1); each global batch has exactly one in each of `batch` equal strata.

    u = (u_0 + i / batch) mod 1 (Kingma et al., 2021, Appendix I.1), with u_0 and the order of the i drawn for
    each batch. A position's batch is position // batch, so the number is the same whichever rank asks for it.
    """
    numbers, places = positions // batch, positions % batch
    u = np.empty(len(positions))
    for number in np.unique(numbers).tolist():
        draw = generator(seed, number, stream)
        strata = (draw.random() + draw.permutation(batch) / batch) % 1
        mine = numbers == number
        u[mine] = strata[places[mine]]
    return _open(u)


@functools.lru_cache(maxsize=256)
def _key(seed: int, stream: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:16])


def _open(u: np.ndarray) -> Tensor:
    """[0, 1) to odd multiples of 2^-24: exact in fp32, and never 0 or 1, where a quantile can be infinite."""
    return torch.from_numpy(((2 * np.floor(u * 2**23) + 1) / 2**24).astype(np.float32))
