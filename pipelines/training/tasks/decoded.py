"""What is decoded from rows, as arrays by row number."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


class Decoded:
    """Arrays of one shape by row number: decoded when first asked for, and kept if all fit."""

    def __init__(
        self, decode: Callable[[int], np.ndarray], length: int, *, dtype: DTypeLike, budget: int
    ) -> None:
        self.decode = decode
        self.shape = decode(0).shape
        fits = length * int(np.prod(self.shape)) * np.dtype(dtype).itemsize <= budget
        # Pages that are never written take no memory, so nothing is paid before it is used.
        self.kept = np.zeros((length, *self.shape), dtype) if fits else None
        self.known = np.zeros(length if fits else 0, bool)
        self.length, self.dtype = length, dtype

    def __getitem__(self, numbers: np.ndarray | Sequence[int]) -> np.ndarray:
        """[len(numbers), *shape]. Raises ValueError where a row has another shape than the first."""
        numbers = np.asarray(numbers, dtype=np.int64)
        if self.kept is None:
            return np.stack([self._decode(n) for n in numbers.tolist()])
        for n in numbers[~self.known[numbers]].tolist():
            self.kept[n] = self._decode(n)
            self.known[n] = True
        return self.kept[numbers]

    def _decode(self, number: int) -> np.ndarray:
        array = self.decode(number)
        if array.shape != self.shape:
            raise ValueError(
                f"Training needs equal shapes, and row {number} has {array.shape} where row 0 has "
                f"{self.shape}: set `size` and `resize: crop` (or `fit`), "
                "or `buckets`, in ingest."
            )
        return array.astype(self.dtype, copy=False)


class Grouped:
    """The same of rows in groups of one shape each: a call is for rows of one group."""

    def __init__(
        self,
        decode: Callable[[int], np.ndarray],
        groups: Sequence[np.ndarray],
        *,
        dtype: DTypeLike,
        budget: int,
    ) -> None:
        """`groups`: row numbers, ascending, each in one of them."""
        length = sum(map(len, groups))
        self.groups = tuple(groups)
        self.parts: list[Decoded] = []
        for rows in groups:
            share = budget * len(rows) // length
            one = functools.partial(_one, decode, rows)
            self.parts.append(Decoded(one, len(rows), dtype=dtype, budget=share))
        self.shape = max(self.parts, key=lambda part: part.length).shape
        """Of the largest group."""

    def __getitem__(self, numbers: np.ndarray | Sequence[int]) -> np.ndarray:
        """[len(numbers), *shape]. Raises ValueError for rows of several groups."""
        numbers = np.asarray(numbers, dtype=np.int64)
        there = []
        for rows, part in zip(self.groups, self.parts, strict=True):
            places = np.minimum(np.searchsorted(rows, numbers), len(rows) - 1)
            mine = rows[places] == numbers
            if mine.all():
                return part[places]
            there.append(mine.any())
        raise ValueError(f"Rows of {sum(there)} sizes cannot be one batch.")


def decoded(
    decode: Callable[[int], np.ndarray],
    length: int,
    groups: Sequence[np.ndarray],
    *,
    dtype: DTypeLike,
    budget: int,
) -> Decoded | Grouped:
    """`Decoded`, or `Grouped` where there are groups."""
    if groups:
        return Grouped(decode, groups, dtype=dtype, budget=budget)
    return Decoded(decode, length, dtype=dtype, budget=budget)


def _one(decode: Callable[[int], np.ndarray], rows: np.ndarray, place: int) -> np.ndarray:
    return decode(int(rows[place]))
