"""The rows of a split over joined datasets, by number; what reading them takes is loaded as they are read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
        self._length = int(self.starts[-1])
        if not len(self) and not optional:
            wanted = ", ".join(f"{column} of {name}" for name, column in required.items())
            raise ValueError(f"The {split} split has no sample with {wanted}.")
        for name, reader in self.members.items():
            whole = sum(of.get("bytes", 0) for of in self._facts(name, columns[name]))
            if kept is not None and len(self) <= shuffle.window and whole > kept.budget:
                reader.neighbours = False  # all are mixed at once, and more than the cache holds

    def __len__(self) -> int:
        return self._length

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

    @property
    def remote(self) -> bool:
        """Whether `fetch` does anything."""
        return any(members.cache is not None and members.neighbours for members in self.members.values())

    def fetch(self, numbers: Sequence[int]) -> None:
        """Has what reading these rows takes on this machine, so that nobody waits for it later."""
        found: dict[int, list[int]] = {}
        for number in numbers:
            n, place = self._where(number)
            found.setdefault(n, []).append(place)
        for n, places in found.items():
            shard = self._shard(n)
            rows = places if shard.rows is None else shard.rows[places].tolist()
            for name, members in self.members.items():
                members.fetch(shard.spans[name], rows)

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
        if not 0 <= number < self._length:
            raise IndexError(f"There is no row {number} of {self._length}.")
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


def memory_budget(*, share: float, workers: int) -> int:
    """Bytes that one of `workers` on this machine may fill with decoded rows."""
    import psutil

    return int(psutil.virtual_memory().available * share / workers)
