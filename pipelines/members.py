"""Members of a dataset's rows, in any order: each checked by its digest before it is used.

Of a store on this machine's disks a member is read where it lies. Of a remote one, what lies about it is read
in one go into the machine's cache: whoever reads a part of a shard reads its neighbours next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from cluster.storage import LocalStorage, check_name
from pipelines.dataset import Dataset
from pipelines.shard_cache import WHOLE, OpenFiles, ShardCache
from pipelines.shard_index import ShardInfo
from pipelines.shards import ShardError
from pipelines.spans import Spans, from_index, spans_of
from pipelines.view import View

SPARSE = 8
"""Neighbours are read with a member unless they are so many times larger than what is wanted of them."""
PARTS = 4
"""A block is read in so many parts: of one that two machines share, each reads what is nearly its own."""
LEAST, MOST = 2 << 20, 32 << 20
"""Bytes of a part: a block of fewer is not cut, for a request takes as long; parts of more are cut again."""


class Members:
    """Of one dataset; for several threads at once."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        columns: Sequence[str],
        cache: ShardCache | None,
        block: int,
        files: OpenFiles,
        shared: bool = False,
    ) -> None:
        """
        Args:
            columns: that are read of most rows.
            cache: for a remote dataset; None reads every member by itself.
            block: rows that are read one after another.
            shared: whether a row's shared members are read with it.
        """
        self.dataset, self.columns, self.block, self.shared = dataset, tuple(columns), block, shared
        self.local = isinstance(dataset.storage, LocalStorage)
        self.cache = None if self.local or isinstance(dataset, View) else cache
        self.neighbours = True
        """Whether a row's neighbours are read with it."""
        self._files = files

    def spans(self, shard: str) -> Spans:
        """The shard's rows, checked against the manifest; `ShardError` if it is not what was written."""
        dataset, name = self.dataset, f"{shard}.parquet"
        if isinstance(dataset, View):
            return from_index(dataset.index(shard))
        info = dataset.info(shard)
        check_name(f"{shard}.tar")  # once for all its reads
        if self.cache is None:
            try:
                return spans_of(dataset.storage, info, dataset.storage.read(name))
            except FileNotFoundError as error:
                raise _missing(dataset, name, info) from error
        try:
            return spans_of(dataset.storage, info, self.cache.whole(dataset.storage, name, info.index))
        except FileNotFoundError as error:
            raise _missing(dataset, name, info) from error
        except ShardError:
            self.cache.drop(dataset.storage, name, info.index, WHOLE)
            return spans_of(dataset.storage, info, self.cache.whole(dataset.storage, name, info.index))

    def read(self, spans: Spans, n: int, column: str) -> bytes:
        """A member of row `n`; `KeyError` if it has none."""
        if isinstance(self.dataset, View):
            return self.dataset.read_member(spans.info.name, n, column)
        found = spans.member(n, column)
        if found is None:
            raise KeyError(f"Row {n} of shard {spans.info.name} has no {column}.")
        offset, size, digest = found
        return self._checked(spans.info, offset, size, digest, self._around(spans, n, offset, size))

    def read_shared(self, spans: Spans, n: int, name: str) -> bytes:
        """A member that row `n` has in common with others, by full name; `KeyError` if there is none."""
        if isinstance(self.dataset, View):
            return self.dataset.read_shared(spans.info.name, name)
        offset, size, digest = spans.shared[name]
        return self._checked(
            spans.info, offset, size, bytes.fromhex(digest), self._around(spans, n, offset, size)
        )

    def fetch(self, spans: Spans, rows: Iterable[int]) -> None:
        """Has what `read` of these rows will take at hand, where it is remote."""
        if self.cache is None or not self.neighbours:
            return
        for number in sorted({self._part(spans, n) for n in rows}):
            low, high, total = self._reach(spans, number)
            if total > 0 and total * SPARSE >= high - low:
                self.cache.keep(
                    self.dataset.storage, f"{spans.info.name}.tar", spans.info.sha256, (low, high - low)
                )

    def _part(self, spans: Spans, n: int) -> int:
        """Number of the part of the shard, in equal ones, that row `n` is read with."""
        return ((n + 1) * self._parts(spans) - 1) // spans.info.samples

    def _parts(self, spans: Spans) -> int:
        """Blocks are cut anew where the rows of one take much or little: the same for all who read them."""
        info = spans.info
        blocks = -(-info.samples // self.block)
        columns = set(info.columns) - {"image"} if self.shared else set(self.columns) & set(info.columns)
        size = sum(int(info.columns[column]["bytes"]) for column in columns) // blocks
        return blocks * max(1, min(PARTS, size // LEAST), -(-size // MOST))

    def _reach(self, spans: Spans, part: int) -> tuple[int, int, int]:
        rows, count = spans.info.samples, self._parts(spans)
        return spans.reach(part * rows // count, (part + 1) * rows // count, self.columns, shared=self.shared)

    def _around(self, spans: Spans, n: int, offset: int, size: int) -> tuple[int, int] | None:
        """The range that a member of row `n` is read with: of its part's rows."""
        if self.cache is None or not self.neighbours:
            return None
        low, high, total = self._reach(spans, self._part(spans, n))
        # Another column, or one of many large ones that nobody asks for.
        if not low <= offset <= offset + size <= high or total * SPARSE < high - low:
            return None
        return low, high - low

    def _checked(
        self, info: ShardInfo, offset: int, size: int, digest: bytes, around: tuple[int, int] | None
    ) -> bytes:
        storage, name = self.dataset.storage, f"{info.name}.tar"
        for _ in range(2):
            try:
                if isinstance(storage, LocalStorage):
                    data = self._files.get(f"{storage.url}/{name}").read(offset, size)
                elif around is None or self.cache is None:
                    data = storage.read_range(name, offset, size)
                else:
                    data = self.cache.read(storage, name, info.sha256, around, (offset, size))
            except FileNotFoundError as error:
                raise _missing(self.dataset, name, info) from error
            except EOFError:
                break
            if hashlib.sha256(data).digest() == digest:
                return data
            if around is None or self.cache is None:
                break
            self.cache.drop(storage, name, info.sha256, around)  # and once more, from the store
        raise ShardError(f"{storage.url}/{name} has other bytes than were written; {_remedy(info)}.")


def _missing(dataset: Dataset, name: str, info: ShardInfo) -> ShardError:
    return ShardError(f"{dataset.storage.url}/{name} is missing; {_remedy(info)}.")


def _remedy(info: ShardInfo) -> str:
    return f"delete {info.name}.tar, {info.name}.parquet and manifest.json there and run again"
