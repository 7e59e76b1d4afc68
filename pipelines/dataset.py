"""A dataset: a folder of shards, and the manifest that was written last.

Datasets of one line have equal rows under equal shard names, so their columns are joined by shard and key.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import LocalStorage, Storage
from pipelines.manifest_text import Part, cut, spelt, turned
from pipelines.shard_table import Entries, ShardTable
from pipelines.shards import ShardError, ShardFile, ShardIndex, ShardInfo, canonical, read_index, verify_shard
from pipelines.stage import DROPPED
from pipelines.tar import Span

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample as it is read."""

    key: str
    split: str
    members: Mapping[str, bytes]
    """Column, as it was asked for -> bytes."""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Where one member's bytes lie."""

    url: str
    """Of the dataset's folder."""
    tar: str
    offset: int
    size: int
    digest: str


class Dataset:
    """A finished folder of shards, or, while a stage still runs, the shards that it has committed."""

    def __init__(self, storage: Storage, manifest: Mapping[str, Any]) -> None:
        self.storage = storage
        self.manifest: dict[str, Any] = dict(manifest)
        given = self.manifest["shards"]
        self.shards: Sequence[ShardInfo] = (
            given.table if isinstance(given, Entries) else [ShardInfo(**shard) for shard in given]
        )
        self._indices: dict[str, ShardIndex] = {}

    @staticmethod
    def open(storage: Storage) -> Dataset:
        """`ValueError` if the folder holds no finished dataset, or one that was changed since."""
        manifest = read_manifest(storage)
        if manifest.get("kind") != "dataset":
            raise ValueError(f"{storage.url} is a {manifest.get('kind')}, not a dataset.")
        if "view" in manifest:
            from pipelines.view import View

            return View(storage, manifest)
        return Dataset(storage, manifest)

    @property
    def classes(self) -> list[str]:
        """Class names; a sample's `cls` member is an index into them."""
        return list(self.manifest.get("classes", []))

    @property
    def columns(self) -> list[str]:
        """Names of the columns that at least one sample has; `image` beside its jpg, png or webp."""
        if isinstance(self.shards, ShardTable):
            return sorted(self.shards.columns)
        return sorted({name for shard in self.shards for name in shard.columns})

    @property
    def splits(self) -> list[str]:
        if isinstance(self.shards, ShardTable):
            return sorted(self.shards.splits)
        return sorted({shard.split for shard in self.shards})

    def __len__(self) -> int:
        """Samples that were committed, over all splits."""
        return sum(shard.samples - shard.rejected for shard in self.shards)

    @functools.cached_property
    def table(self) -> ShardTable:
        """What the manifest says of the shards, as arrays."""
        if isinstance(self.shards, ShardTable):
            return self.shards
        return ShardTable([Part.of([shard.__dict__ for shard in self.shards])])

    def digest(self, columns: Sequence[str] = ()) -> str:
        """Of what the columns hold (all if none is named): never of tars, paths or times."""
        return _digest(self.shards, columns or self.columns, self.classes)

    def info(self, shard: str) -> ShardInfo:
        given = self.shards
        n = given.find(shard) if isinstance(given, ShardTable) else self._numbers.get(shard)
        if n is None:
            raise ValueError(f"{self.storage.url} has no shard {shard}.")
        return given[n]

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {shard.name: n for n, shard in enumerate(self.shards)}

    def index(self, shard: str) -> ShardIndex:
        """The shard's rows; checked against the manifest, then kept."""
        if shard not in self._indices:
            self._indices[shard] = read_index(self.storage, shard, self.info(shard))
        return self._indices[shard]

    def read(
        self, shard: str, keys: Iterable[str] | None = None, columns: Sequence[str] = ("image",)
    ) -> Iterator[Record]:
        """Samples in key order, all or those of `keys`; rows that lack one of the columns are dropped.

        The shard is verified before the first sample; of a remote one, `keys` are read by byte range instead.
        Each member is checked by its digest. `ShardError` where anything differs.
        """
        index = self.index(shard)
        wanted = None if keys is None else set(keys)
        rows = [n for n, key in enumerate(index.keys) if wanted is None or key in wanted]
        with self._reader(index, whole=wanted is None) as reader:
            for n in rows:
                spans = [index.member(n, column) for column in columns]
                if index.reasons[n] is None and all(spans):
                    members = {c: reader.read(span) for c, span in zip(columns, spans, strict=True) if span}
                    yield Record(
                        key=index.keys[n], split=index.info.split, members=members, meta=index.meta[n]
                    )

    def read_member(self, shard: str, n: int, column: str) -> bytes:
        """One member of row `n`; `KeyError` if the row has none."""
        index = self.index(shard)
        span = index.member(n, column)
        if span is None:
            raise KeyError(f"{index.keys[n]} has no {column}.")
        with self._reader(index, whole=False) as reader:
            return reader.read(span)

    def read_shared(self, shard: str, name: str) -> bytes:
        """A member that samples of the shard have in common, by full name; `KeyError` if there is none."""
        index = self.index(shard)
        with self._reader(index, whole=False) as reader:
            return reader.read(index.shared[name])

    def pointer(self, shard: str, n: int, column: str) -> Pointer | None:
        """Where row `n`'s member lies, for a view; None if it has none."""
        span = self.index(shard).member(n, column)
        if span is None:
            return None
        return Pointer(url=self.storage.url, tar=f"{shard}.tar", offset=span[0], size=span[1], digest=span[2])

    def verify(self) -> None:
        """Reads every shard once; `ShardError` at the first that is not what was written."""
        for shard in self.shards:
            self.index(shard.name)
            verify_shard(self.storage, shard)

    def _reader(self, index: ShardIndex, *, whole: bool) -> ShardFile | _Ranges:
        if whole or isinstance(self.storage, LocalStorage):
            return ShardFile(self.storage, index.info)
        return _Ranges(self.storage, index.info)


@dataclass(frozen=True)
class Joined:
    """Datasets of one line, read side by side."""

    datasets: Mapping[str, Dataset]

    @property
    def shards(self) -> Sequence[ShardInfo]:
        return next(iter(self.datasets.values())).shards

    def read(self, shard: str, columns: Mapping[str, Sequence[str]]) -> Iterator[Record]:
        """Rows that have every column of every dataset; `columns` is dataset name -> its columns."""
        owner = {column: name for name, of in columns.items() for column in of}
        if len(owner) != sum(map(len, columns.values())):
            raise ValueError("Two datasets are asked for a column of the same name.")
        keys: set[str] | None = None
        for name, of in columns.items():
            index = self.datasets[name].index(shard)
            have = {k for n, k in enumerate(index.keys) if all(index.member(n, c) for c in of)}
            keys = have if keys is None else keys & have
        streams = [self.datasets[name].read(shard, keys, of) for name, of in columns.items()]
        for records in zip(*streams, strict=True):
            members = {column: data for record in records for column, data in record.members.items()}
            meta = {name: value for record in records for name, value in record.meta.items()}
            yield Record(key=records[0].key, split=records[0].split, members=members, meta=meta)


def join(datasets: Mapping[str, Dataset]) -> Joined:
    """`ValueError` unless all have the same shards; their rows are compared shard by shard, here."""
    lined_up(datasets)
    (first_name, first), *others = datasets.items()
    for name, other in others:
        for shard in first.shards:
            if other.index(shard.name).keys != first.index(shard.name).keys:
                raise ValueError(
                    f"{name} and {first_name} differ in the rows of shard {shard.name}: not of one line."
                )
    return Joined(datasets)


def lined_up(datasets: Mapping[str, Dataset]) -> None:
    """`ValueError` unless all have the same shards; their rows are not looked at."""
    (first_name, first), *others = datasets.items()
    for name, other in others:
        if not other.table.alike(first.table):
            raise ValueError(f"{name} and {first_name} have different shards: they are not of one line.")


def describe(shards: Sequence[ShardInfo], **fields: Any) -> dict[str, Any]:
    """A manifest's counts, columns, splits and shards, beside `fields` (stage, version, inputs, ...)."""
    shards = sorted(shards, key=lambda shard: shard.name)
    columns: dict[str, dict[str, Any]] = {}
    reasons: dict[str, int] = {}
    splits: dict[str, dict[str, int]] = {}
    for shard in shards:
        for name, column in shard.columns.items():
            total = columns.setdefault(name, {"count": 0, "bytes": 0, "digest": ""})
            total["count"] += column["count"]
            total["bytes"] += column["bytes"]
        for reason, count in shard.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        split = splits.setdefault(shard.split, {"shards": 0, "samples": 0, "rejected": 0})
        gone = shard.reasons.get(DROPPED, 0)
        for name, value in (("shards", 1), ("samples", shard.samples), ("rejected", shard.rejected - gone)):
            split[name] += value
        if gone:
            split[DROPPED] = split.get(DROPPED, 0) + gone
    inputs, lacking = sum(shard.samples for shard in shards), sum(shard.rejected for shard in shards)
    dropped = reasons.pop(DROPPED, 0)
    manifest = {
        **fields,
        "columns": dict(sorted(columns.items())),
        "splits": dict(sorted(splits.items())),
        "counts": {
            "inputs": inputs,
            "committed": inputs - lacking,
            "rejected": lacking - dropped,
            "reasons": dict(sorted(reasons.items())),
            **({DROPPED: dropped} if dropped else {}),
        },
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    for name, column in columns.items():
        column["digest"] = _digest(shards, (name,), manifest.get("classes", []))
    return manifest


def write_manifest(storage: Storage, manifest: Mapping[str, Any], kind: str = "dataset") -> dict[str, Any]:
    """Finishes a folder: adds format, kind and the manifest's own digest, and commits it.

    Gives the manifest that stands there: another driver's if it came first.
    """
    whole = {**manifest, "format": 1, "kind": kind}
    whole = json.loads(canonical(whole))
    whole["sha256"] = _own_digest(whole)
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    return whole if storage.put_if_absent(MANIFEST, text) else read_manifest(storage)


def read_manifest(storage: Storage) -> dict[str, Any]:
    """`ValueError` if there is none, if it was changed, or if its format is a later one.

    To be read only: what is in a large one may be shared with others who read it.
    """
    try:
        data = storage.read(MANIFEST)
    except FileNotFoundError as error:
        raise ValueError(f"{storage.url} has no {MANIFEST}: not there, or not finished.") from error
    if len(data) < _LARGE:
        return _parsed(data, storage.url)
    # A recipe's stages each open what they read: of 100,000 shards that took seconds every time.
    key = hashlib.sha256(data).hexdigest()
    found = _known.get(key)
    if found is None:
        found = _parsed(data, storage.url)
        while len(_known) >= _KEPT:
            _known.pop(next(iter(_known)), None)
        _known[key] = found
    return dict(found)


_LARGE, _KEPT = 1 << 20, 4
_known: dict[str, dict[str, Any]] = {}
"""Digest of a large manifest's file -> what it says."""


def _parsed(data: bytes, url: str) -> dict[str, Any]:
    damaged = ShardError(f"{url}/{MANIFEST} is damaged.")
    try:
        # Of a large one the shards become arrays, a few objects at a time.
        found = cut(data) if len(data) >= _LARGE else None
        manifest = json.loads(data if found is None else found[0])
    except ValueError as error:
        raise damaged from error
    if not isinstance(manifest, dict):
        raise damaged
    if manifest.get("format") != 1:
        raise ValueError(
            f"{url}/{MANIFEST} has format {manifest.get('format')}; this version reads format 1."
        )
    if found is None:
        digest = _own_digest(manifest)
    else:
        hasher = hashlib.sha256(_beside(manifest, before=True) + b'"shards":[')
        try:
            manifest["shards"] = Entries(ShardTable(_hashed(found[1], hasher)))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise damaged from error
        hasher.update(b"]" + _beside(manifest, before=False))
        digest = hasher.hexdigest()
    if manifest.get("sha256") != digest or not data.endswith(b"\n}\n"):
        raise ShardError(f"{url}/{MANIFEST} was changed after it was written.")
    return manifest


def _hashed(parts: Iterable[bytes], hasher: Any) -> Iterator[Part]:
    for n, text in enumerate(parts):
        hasher.update((b"," if n else b"") + spelt(text, functools.partial(json.loads, text))[1:-1])
        yield turned(text)


def _beside(manifest: Mapping[str, Any], *, before: bool) -> bytes:
    """The manifest's spelling in its digest, before or behind its shards."""
    text = canonical(
        {k: v for k, v in manifest.items() if k not in ("sha256", "shards") and (k < "shards") == before}
    )
    inner = b"," * (text != b"{}")
    return text[:-1] + inner if before else inner + text[1:]


def _digest(shards: Iterable[ShardInfo], columns: Sequence[str], classes: Sequence[str]) -> str:
    names = sorted(columns)
    hasher = hashlib.sha256()
    ordered = shards.ordered() if isinstance(shards, ShardTable) else sorted(shards, key=lambda one: one.name)
    for shard in ordered:
        digests = [[name, shard.columns.get(name, {}).get("digest", "")] for name in names]
        hasher.update(canonical([shard.name, shard.split, digests]) + b"\n")
    if "cls" in names:
        # A class id means nothing without the list of names.
        hasher.update(canonical(list(classes)))
    return hasher.hexdigest()


def _own_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({k: v for k, v in manifest.items() if k != "sha256"})).hexdigest()


class _Ranges:
    """Members of a remote shard, each by its byte range and checked by its digest."""

    def __init__(self, storage: Storage, info: ShardInfo) -> None:
        self._storage, self._name = storage, f"{info.name}.tar"

    def __enter__(self) -> _Ranges:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self, span: Span) -> bytes:
        offset, size, digest = span
        where = f"{self._storage.url}/{self._name}"
        try:
            data = self._storage.read_range(self._name, offset, size)
        except (EOFError, FileNotFoundError) as error:
            raise ShardError(f"{where} is cut short or missing.") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise ShardError(f"{where} has other bytes than were written.")
        return data
