"""A dataset without bytes of its own: rows that point into other datasets, each with a weight."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from pipelines.dataset import Dataset, Pointer, Record, describe
from pipelines.shards import IMAGE, ShardError, ShardIndex, ShardInfo, read_index, write_shard
from pipelines.sources.split import shard_names
from pipelines.stage import Row, Sample
from pipelines.tar import Span


@dataclass(frozen=True, kw_only=True)
class ViewRow:
    """One row of a view."""

    key: str
    """Of this view: unique in it, and legal."""
    source: str
    """Name of the dataset that it points into."""
    shard: str
    row: int
    """Number of the row in that shard's index."""
    weight: float = 1.0
    """How often it counts, next to 1 for a real image."""
    keep: bool = True
    """False: the row stays, so that no key shifts, and reading passes over it."""


def write_view(
    storage: Storage,
    sources: Mapping[str, Dataset],
    rows: Iterable[ViewRow],
    *,
    samples_per_shard: int = 100_000,
) -> dict[str, Any]:
    """Writes the rows' index; the manifest's fields, to which whoever calls it adds its own.

    A row is in the split of the row that it points to. The classes are those of the source that has most.

    Raises:
        ValueError: two rows have one key, or sources disagree on what a class id means.
    """
    rows = sorted(rows, key=lambda row: row.key)
    splits = [sources[row.source].info(row.shard).split for row in rows]
    shards: dict[str, list[ViewRow]] = {}
    for row, name in zip(
        rows, shard_names([row.key for row in rows], splits, samples_per_shard), strict=True
    ):
        shards.setdefault(name, []).append(row)
    infos = []
    for name, mine in sorted(shards.items()):
        split = sources[mine[0].source].info(mine[0].shard).split
        pairs = ((Row(key=row.key), Sample(key=row.key, meta=_meta(row))) for row in mine)
        bare = write_shard(storage, name, pairs, split=split)
        index = _resolve(read_index(storage, name), sources)
        rejected = sum(reason is not None for reason in index.reasons)
        reasons = {"rejected_in_source": rejected} if rejected else {}
        infos.append(dataclasses.replace(bare, columns=_columns(index), rejected=rejected, reasons=reasons))
    where = {
        name: {"where": _relative(storage.url, source.storage.url), "digest": source.digest()}
        for name, source in sources.items()
    }
    return describe(infos, classes=_classes(sources), view={"sources": where})


class View(Dataset):
    """Reads like any dataset; the bytes come from, and are verified in, the datasets that it points into."""

    def __init__(self, storage: Storage, manifest: Mapping[str, Any]) -> None:
        super().__init__(storage, manifest)
        self.sources: dict[str, Dataset] = {}
        for name, said in self.manifest["view"]["sources"].items():
            source = Dataset.open(Storage.at(_absolute(storage.url, said["where"])))
            if source.digest() != said["digest"]:
                raise ShardError(f"{source.storage.url} is not what {storage.url} was made from.")
            self.sources[name] = source
        self._rows: dict[str, list[ViewRow]] = {}

    def rows(self, shard: str) -> list[ViewRow]:
        """What each row of the index points to."""
        if shard not in self._rows:
            bare = read_index(self.storage, shard)
            if bare.info.index != self.info(shard).index:
                raise ShardError(f"{self.storage.url}/{shard}.parquet is not what was written.")
            self._rows[shard] = _rows(bare)
            self._indices[shard] = _resolve(bare, self.sources, self.info(shard))
        return self._rows[shard]

    def index(self, shard: str) -> ShardIndex:
        """As of any dataset; offsets are in the source's tar, and rows that are not kept have no members."""
        self.rows(shard)
        return self._indices[shard]

    def read(
        self, shard: str, keys: Iterable[str] | None = None, columns: Sequence[str] = ("image",)
    ) -> Iterator[Record]:
        index, wanted = self.index(shard), None if keys is None else set(keys)
        for n, key in enumerate(index.keys):
            if (wanted is None or key in wanted) and all(index.member(n, c) for c in columns):
                members = {column: self.read_member(shard, n, column) for column in columns}
                yield Record(key=key, split=index.info.split, members=members, meta=index.meta[n])

    def read_member(self, shard: str, n: int, column: str) -> bytes:
        row = self.rows(shard)[n]
        if self.index(shard).member(n, column) is None:
            raise KeyError(f"{row.key} has no {column}.")
        return self.sources[row.source].read_member(row.shard, row.row, column)

    def read_shared(self, shard: str, name: str) -> bytes:
        for source, theirs in sorted({(row.source, row.shard) for row in self.rows(shard)}):
            if name in self.sources[source].index(theirs).shared:
                return self.sources[source].read_shared(theirs, name)
        raise KeyError(name)

    def pointer(self, shard: str, n: int, column: str) -> Pointer | None:
        row = self.rows(shard)[n]
        return self.sources[row.source].pointer(row.shard, row.row, column) if row.keep else None

    def verify(self) -> None:
        for shard in self.shards:
            self.index(shard.name)
        for source in self.sources.values():
            source.verify()


def _meta(row: ViewRow) -> dict[str, Any]:
    return {
        "source": row.source,
        "shard": row.shard,
        "row": row.row,
        "weight": float(row.weight),
        "keep": row.keep,
    }


def _rows(bare: ShardIndex) -> list[ViewRow]:
    return [ViewRow(key=key, **meta) for key, meta in zip(bare.keys, bare.meta, strict=True)]


def _resolve(bare: ShardIndex, sources: Mapping[str, Dataset], info: ShardInfo | None = None) -> ShardIndex:
    """The index with the members, reasons and facts of the rows that it points to."""
    rows = _rows(bare)
    theirs = [sources[row.source].index(row.shard) for row in rows]
    suffixes = sorted({suffix for index in theirs for suffix in index.members})
    members: dict[str, list[Span | None]] = {
        suffix: [
            index.members[suffix][row.row] if row.keep and suffix in index.members else None
            for row, index in zip(rows, theirs, strict=True)
        ]
        for suffix in suffixes
    }
    return dataclasses.replace(
        bare,
        info=info or bare.info,
        reasons=[index.reasons[row.row] for row, index in zip(rows, theirs, strict=True)],
        meta=[
            {**index.meta[row.row], "source": row.source, "weight": row.weight, "keep": row.keep}
            for row, index in zip(rows, theirs, strict=True)
        ],
        members=members,
    )


def _columns(index: ShardIndex) -> dict[str, dict[str, Any]]:
    """As a shard's, with the weights in the digest: another weight is another dataset."""
    columns = {}
    names = [*index.members, *(["image"] if any(suffix in index.members for suffix in IMAGE) else [])]
    for name in sorted(names):
        hasher, count, size = hashlib.sha256(), 0, 0
        for n, key in enumerate(index.keys):
            if span := index.member(n, name):
                hasher.update(f"{key}\0{span[2]}\0{index.meta[n]['weight']!r}\n".encode())
                count, size = count + 1, size + span[1]
        columns[name] = {"count": count, "bytes": size, "digest": hasher.hexdigest()}
    return columns


def _classes(sources: Mapping[str, Dataset]) -> list[str]:
    lists = [source.classes for source in sources.values() if source.classes]
    longest = max(lists, key=len, default=[])
    if any(longest[: len(classes)] != classes for classes in lists):
        raise ValueError(
            "The datasets number their classes differently; generate with a model of the same dataset."
        )
    return longest


def _relative(here: str, there: str) -> str:
    """`there` as seen from `here`, so that a store can be moved; whole where they share no root."""
    (scheme, a), (other, b) = _parts(here), _parts(there)
    if scheme != other or (scheme and a.partition("/")[0] != b.partition("/")[0]):
        return there
    return posixpath.relpath(b, a) if scheme else os.path.relpath(b, a)


def _absolute(here: str, where: str) -> str:
    scheme, path = _parts(here)
    if "://" in where or os.path.isabs(where):
        return where
    joined = posixpath.normpath(posixpath.join(path, where))
    return f"{scheme}://{joined}" if scheme else joined


def _parts(url: str) -> tuple[str, str]:
    scheme, separator, path = url.partition("://")
    return (scheme, path) if separator else ("", url)
