"""The rows of a split over joined datasets, by number, and what is decoded from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

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
                f"{self.shape}: set `size` and `resize: crop` (or `fit`) in ingest."
            )
        return array.astype(self.dtype, copy=False)


def memory_budget(*, share: float, workers: int) -> int:
    """Bytes that one of `workers` on this machine may fill with decoded rows."""
    import psutil

    return int(psutil.virtual_memory().available * share / workers)
