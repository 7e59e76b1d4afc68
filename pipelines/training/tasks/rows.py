"""The rows of a split over joined datasets, by number, and what is decoded from them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipelines import buckets
from pipelines.buckets import Size
from pipelines.dataset import Dataset, join

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


class Rows:
    """Rows of one split in shard and key order that have every required column.

    Raises:
        ValueError: the datasets are not of one line, or the split has no such row.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        *,
        split: str,
        required: Mapping[str, str],
        optional: bool = False,
    ) -> None:
        self.datasets = dict(datasets)
        self.entries: list[tuple[str, int]] = []
        for shard in join(self.datasets).shards:
            if shard.split != split:
                continue
            index = {name: dataset.index(shard.name) for name, dataset in self.datasets.items()}
            rejected = [i.reasons for i in index.values()]
            for n in range(shard.samples):
                whole = all(index[name].member(n, column) for name, column in required.items())
                if whole and not any(reasons[n] for reasons in rejected):
                    self.entries.append((shard.name, n))
        if not self.entries and not optional:
            wanted = ", ".join(f"{column} of {name}" for name, column in required.items())
            raise ValueError(f"The {split} split has no sample with {wanted}.")

    def __len__(self) -> int:
        return len(self.entries)

    def has(self, number: int, name: str, column: str) -> bool:
        shard, n = self.entries[number]
        return self.datasets[name].index(shard).member(n, column) is not None

    def read(self, number: int, name: str, column: str) -> bytes:
        """A member's bytes, checked by their digest."""
        shard, n = self.entries[number]
        return self.datasets[name].read_member(shard, n, column)

    def read_shared(self, number: int, name: str, member: str) -> bytes:
        """A member that the row's shard holds once for all its samples."""
        return self.datasets[name].read_shared(self.entries[number][0], member)

    def by_size(self, name: str, look: Callable[[int], Size]) -> dict[Size, np.ndarray]:
        """Numbers of the rows of each width and height, px, if `name` has several sizes; else nothing.

        Args:
            look: finds the size of a row whose index does not say it.
        """
        dataset, found = self.datasets[name], {}
        if not buckets.known(dataset.manifest.get("statistics", {})):
            return found
        for number, (shard, n) in enumerate(self.entries):
            meta = dataset.index(shard).meta[n]
            size = (meta["width"], meta["height"]) if "width" in meta else look(number)
            found.setdefault(size, []).append(number)
        return {size: np.array(found[size], np.int64) for size in buckets.ordered(found)}


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
        self.known = np.zeros(length, bool)
        self.dtype = dtype

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
        """`groups`: row numbers, each in one of them."""
        length = sum(map(len, groups))
        self.group, self.place = np.empty(length, np.int64), np.empty(length, np.int64)
        self.parts: list[Decoded] = []
        for n, rows in enumerate(groups):
            self.group[rows], self.place[rows] = n, np.arange(len(rows))
            share = budget * len(rows) // length
            one = functools.partial(_one, decode, rows)
            self.parts.append(Decoded(one, len(rows), dtype=dtype, budget=share))
        self.shape = max(self.parts, key=lambda part: len(part.known)).shape
        """Of the largest group."""

    def __getitem__(self, numbers: np.ndarray | Sequence[int]) -> np.ndarray:
        """[len(numbers), *shape]. Raises ValueError for rows of several groups."""
        numbers = np.asarray(numbers, dtype=np.int64)
        groups = np.unique(self.group[numbers]).tolist()
        if len(groups) != 1:
            raise ValueError(f"Rows of {len(groups)} sizes cannot be one batch.")
        return self.parts[groups[0]][self.place[numbers]]


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


def memory_budget(*, share: float, workers: int) -> int:
    """Bytes that one of `workers` on this machine may fill with decoded rows."""
    import psutil

    return int(psutil.virtual_memory().available * share / workers)
