"""The rows of a split over joined datasets, by number; what reading them takes is loaded as they are read."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cluster.storage import LocalStorage
from pipelines import buckets
from pipelines.buckets import Size
from pipelines.dataset import Dataset, lined_up
from pipelines.members import Members
from pipelines.shard_cache import CacheConfig, OpenFiles, ShardCache
from pipelines.shard_index import ShardInfo
from pipelines.shuffling import ShuffleConfig
from pipelines.spans import Spans

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

INDEX_SHARE, INDEX_LEAST = 0.05, 64 << 20
"""Share of the free memory that shards' indices may take with all workers of a machine; bytes at least."""
READERS = 16
"""Indices that are read at once where they must be at the start."""


@dataclass(frozen=True, eq=False)
class _Shard:
    """What is in memory of one shard."""

    spans: Mapping[str, Spans]
    rows: np.ndarray | None
    """Which rows count, ascending, int32; all if None."""

    @property
    def nbytes(self) -> int:
        own = 0 if self.rows is None else self.rows.nbytes
        return own + sum(spans.nbytes for spans in self.spans.values())


class Rows:
    """Rows of one split in shard and key order that have every required column.

    How many a shard has is told by the manifests, as long as at most one of the columns lacks in some rows;
    the indices of other shards are read at the start. Memory is 8 bytes a shard, and what was read last.

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
        reads: Mapping[str, Sequence[str]] | None = None,
        cache: CacheConfig | None = None,
        shuffle: ShuffleConfig | None = None,
        workers: int = 1,
    ) -> None:
        """
        Args:
            required: dataset -> a column that each row must have.
            reads: dataset -> the columns that are read of most rows, beside those.
            shuffle: how the rows are ordered, so that what is read next is fetched together.
            workers: of this machine.
        """
        self.datasets, self.required = dict(datasets), dict(required)
        lined_up(self.datasets)
        first = next(iter(self.datasets.values()))
        self.shards = [shard.name for shard in first.shards if shard.split == split]
        columns = {
            name: tuple(
                dict.fromkeys(
                    [*((required[name],) if name in required else ()), *(reads or {}).get(name, ())]
                )
            )
            for name in self.datasets
        }
        remote = any(not isinstance(dataset.storage, LocalStorage) for dataset in self.datasets.values())
        kept = ShardCache(cache or CacheConfig()) if remote else None
        shuffle = shuffle or ShuffleConfig()
        files = OpenFiles()
        self.members = {
            name: Members(dataset, columns=columns[name], cache=kept, block=shuffle.block, files=files)
            for name, dataset in self.datasets.items()
        }
        self._budget = max(memory_budget(share=INDEX_SHARE, workers=workers), INDEX_LEAST)
        self._loaded: OrderedDict[int, _Shard] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()
        self._loading: dict[int, threading.Lock] = {}
        self.starts = self._counted()
        """Number of each shard's first row, and at last how many there are; int64."""
        if not len(self) and not optional:
            wanted = ", ".join(f"{column} of {name}" for name, column in required.items())
            raise ValueError(f"The {split} split has no sample with {wanted}.")
        for name, reader in self.members.items():
            whole = sum(of.get("bytes", 0) for of in self._facts(name, columns[name]))
            if kept is not None and len(self) <= shuffle.window and whole > kept.budget:
                reader.neighbours = False  # all are mixed at once, and more than the cache holds

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, number: int) -> tuple[str, int]:
        """Shard of a row, and which of its rows it is."""
        n, place = self._where(number)
        rows = self._shard(n).rows if self._partial[n] else None
        return self.shards[n], place if rows is None else int(rows[place])

    def places(self) -> Iterator[tuple[str, int]]:
        """The same of all rows, in order."""
        for n, shard in enumerate(self.shards):
            count = int(self.starts[n + 1] - self.starts[n])
            rows = self._shard(n).rows if self._partial[n] and count else None
            for place in range(count):
                yield shard, place if rows is None else int(rows[place])

    def has(self, number: int, name: str, column: str) -> bool:
        shard, n = self._row(number)
        return shard.spans[name].member(n, column) is not None

    def read(self, number: int, name: str, column: str) -> bytes:
        """A member's bytes, checked by their digest."""
        shard, n = self._row(number)
        return self.members[name].read(shard.spans[name], n, column)

    def read_shared(self, number: int, name: str, member: str) -> bytes:
        """A member that the row's shard holds once for all its samples."""
        shard, _ = self._row(number)
        return self.members[name].read_shared(shard.spans[name], member)

    def by_size(self, name: str, look: Callable[[int], Size]) -> dict[Size, np.ndarray]:
        """Numbers of the rows of each width and height, px, if `name` has several sizes; else nothing.

        Every shard's index is read, and 8 bytes a row stay in memory.

        Args:
            look: finds the size of a row whose index does not say it.
        """
        if not buckets.known(self.datasets[name].manifest.get("statistics", {})):
            return {}
        for reader in self.members.values():
            reader.neighbours = False  # a row's neighbours are of other sizes, and come at other times
        found: dict[Size, list[np.ndarray]] = {}
        for n in range(len(self.shards)):
            numbers = np.arange(self.starts[n], self.starts[n + 1], dtype=np.int64)
            if not len(numbers):
                continue
            shard = self._shard(n)
            sizes = np.zeros((len(numbers), 2), np.int64)
            said = shard.spans[name].sizes
            if said is not None:
                sizes[:] = said if shard.rows is None else said[shard.rows]
            for row in np.flatnonzero(~sizes.all(1)).tolist():
                sizes[row] = look(int(numbers[row]))
            for size in np.unique(sizes, axis=0).tolist():
                mine = numbers[(sizes == size).all(1)]
                found.setdefault((size[0], size[1]), []).append(mine)
        return {size: np.concatenate(found[size]) for size in buckets.ordered(found)}

    def _where(self, number: int) -> tuple[int, int]:
        """Number of a row's shard, and its place among those of the shard that count."""
        if not 0 <= number < len(self):
            raise IndexError(f"There is no row {number} of {len(self)}.")
        n = int(np.searchsorted(self.starts, number, side="right")) - 1
        return n, number - int(self.starts[n])

    def _row(self, number: int) -> tuple[_Shard, int]:
        n, place = self._where(number)
        shard = self._shard(n)
        return shard, place if shard.rows is None else int(shard.rows[place])

    def _facts(self, name: str, columns: Sequence[str]) -> Iterator[Mapping[str, int]]:
        for shard in self.shards:
            for column in columns:
                yield self.datasets[name].info(shard).columns.get(column, {})

    def _counted(self) -> np.ndarray:
        counts = np.zeros(len(self.shards), np.int64)
        self._partial = np.zeros(len(self.shards), bool)
        unknown: list[int] = []
        for n, shard in enumerate(self.shards):
            lacking = list(self._lacking(shard))
            self._partial[n] = bool(lacking)
            if len(lacking) > 1:
                unknown.append(n)
            else:
                counts[n] = lacking[0] if lacking else next(iter(self.datasets.values())).info(shard).samples
        with ThreadPoolExecutor(READERS) as pool:
            for n, shard in zip(unknown, pool.map(self._shard, unknown), strict=True):
                counts[n] = 0 if shard.rows is None else len(shard.rows)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    def _lacking(self, shard: str) -> Iterator[int]:
        """Of each dataset some rows of which do not count for what it holds, how many do."""
        for name, dataset in self.datasets.items():
            info: ShardInfo = dataset.info(shard)
            count = info.samples
            if name in self.required:
                # A rejected row has no members, so this is all that counts.
                count = int(info.columns.get(self.required[name], {}).get("count", 0))
            elif info.rejected:
                count = info.samples - info.rejected
            if count < info.samples:
                yield count

    def _shard(self, n: int) -> _Shard:
        with self._lock:
            found = self._loaded.get(n)
            if found is not None:
                self._loaded.move_to_end(n)
                return found
            loading = self._loading.setdefault(n, threading.Lock())
        with loading:  # of several threads one reads it
            with self._lock:
                found = self._loaded.get(n)
            if found is None:
                found = self._load(n)
                with self._lock:
                    self._loaded[n] = found
                    self._bytes += found.nbytes
                    self._loading.pop(n, None)
                    while self._bytes > self._budget and len(self._loaded) > 1:
                        self._bytes -= self._loaded.popitem(last=False)[1].nbytes
        return found

    def _load(self, n: int) -> _Shard:
        shard = self.shards[n]
        spans = {name: members.spans(shard) for name, members in self.members.items()}
        (one, first), *others = spans.items()
        for name, other in others:
            if other.keys != first.keys:
                raise ValueError(f"{name} and {one} differ in the rows of shard {shard}: not of one line.")
        counts = np.ones(first.info.samples, bool)
        for name, column in self.required.items():
            counts &= spans[name].has(column)
        for other in spans.values():
            counts &= ~other.rejected
        return _Shard(spans, None if counts.all() else np.flatnonzero(counts).astype(np.int32))


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


def memory_budget(*, share: float, workers: int) -> int:
    """Bytes that one of `workers` on this machine may fill with decoded rows."""
    import psutil

    return int(psutil.virtual_memory().available * share / workers)
