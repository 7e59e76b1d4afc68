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

    def __len__(self) -> int:
        """Rows that count."""
        return next(iter(self.spans.values())).info.samples if self.rows is None else len(self.rows)

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
        shared: Sequence[str] = (),
        cache: CacheConfig | None = None,
        shuffle: ShuffleConfig | None = None,
        workers: int = 1,
    ) -> None:
        """
        Args:
            required: dataset -> a column that each row must have.
            reads: dataset -> the columns that are read of most rows, beside those.
            shared: datasets of which most rows' shared members are read, too.
            shuffle: how the rows are ordered, so that what is read next is fetched together.
            workers: of this machine.
        """
        self.datasets, self.required = dict(datasets), dict(required)
        lined_up(self.datasets)
        self._table = next(iter(self.datasets.values())).table
        self.shards = self._table.of(split)
        """Numbers of the split's shards in the manifests."""
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
            name: Members(
                dataset,
                columns=columns[name],
                cache=kept,
                block=shuffle.block,
                files=files,
                shared=name in shared,
            )
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
        whole = sum(
            int(dataset.table.columns[column].bytes[self.shards].sum())
            for name, dataset in self.datasets.items()
            for column in (dataset.columns if name in shared else columns[name])
            if column in dataset.table.columns
        )
        self._fits = kept is None or whole <= kept.budget
        """Whether the machine keeps all that it ever read."""
        if len(self) <= shuffle.window:
            self._alone()  # all are mixed at once

    def __len__(self) -> int:
        return self._length

    def place(self, number: int) -> tuple[str, int]:
        """Shard of a row, and which of its rows it is."""
        n, place = self._where(number)
        rows = self._shard(n).rows if self._partial[n] else None
        return self._name(n), place if rows is None else int(rows[place])

    def places(self) -> Iterator[tuple[str, int]]:
        """The same of all rows, in order."""
        for n in range(len(self.shards)):
            shard, count = self._name(n), int(self.starts[n + 1] - self.starts[n])
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
        shard, n = self._row(number)
        return self.members[name].read_shared(shard.spans[name], n, member)

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
        self._alone()  # a row's neighbours are of other sizes, and come at other times

        def sizes(n: int) -> np.ndarray:
            """Of a shard's rows that count, int32 [rows, 2]."""
            shard, start = self._shard(n), int(self.starts[n])
            found = np.zeros((len(shard), 2), np.int32)
            said = shard.spans[name].sizes
            if said is not None:
                found[:] = said if shard.rows is None else said[shard.rows]
            for row in np.flatnonzero(~found.all(1)).tolist():
                found[row] = look(start + row)
            return found

        filled = np.flatnonzero(np.diff(self.starts)).tolist()
        found: dict[Size, list[np.ndarray]] = {}
        with ThreadPoolExecutor(READERS) as pool:
            for n, of in zip(filled, pool.map(sizes, filled), strict=True):
                for size in np.unique(of, axis=0).tolist():
                    mine = self.starts[n] + np.flatnonzero((of == size).all(1))
                    found.setdefault((size[0], size[1]), []).append(mine)
        return {size: np.concatenate(found[size]) for size in buckets.ordered(found)}

    def _alone(self) -> None:
        """Has members read without their neighbours, which would be gone from the cache by their turn."""
        for reader in self.members.values():
            reader.neighbours = self._fits

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

    def _name(self, n: int) -> str:
        return self._table.name(int(self.shards[n]))

    def _counted(self) -> np.ndarray:
        counts = self._table.samples[self.shards].astype(np.int64)
        lacking = np.zeros(len(self.shards), np.int64)
        for name in self.datasets:
            samples, some = self._counts(name)
            counts[some < samples] = some[some < samples]
            lacking += some < samples
        self._partial = lacking > 0
        unknown = np.flatnonzero(lacking > 1).tolist()
        with ThreadPoolExecutor(READERS) as pool:
            counts[unknown] = list(pool.map(lambda n: len(self._shard(n)), unknown))
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    def _counts(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Of each shard of a dataset: its rows, and how many of them count for what the dataset holds."""
        table = self.datasets[name].table
        samples = table.samples[self.shards].astype(np.int64)
        if name not in self.required:
            return samples, samples - table.rejected[self.shards]
        # A rejected row has no members, so this is all that counts.
        column = table.columns.get(self.required[name])
        return samples, np.zeros_like(samples) if column is None else np.maximum(column.count[self.shards], 0)

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
        shard = self._name(n)
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
