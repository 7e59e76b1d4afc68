"""The rows of a shard, and the Parquet file in which they lie beside the tar."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.sealing import BLANK, seal, sealed
from pipelines.tar import Span

IMAGE = ("jpg", "png", "webp")
"""Suffixes that the column name `image` stands for."""

_HEAD, _INFO = b"latentmill", b"latentmill.info"
"""What the file says of its rows, and of the shard; files without the second have no seal either."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """What the manifest says of a shard."""

    name: str
    split: str
    samples: int
    """Rows, the rejected among them."""
    rejected: int
    """Rows without a sample, those that were dropped among them."""
    bytes: int
    """Of the tar."""
    sha256: str
    """Of the tar."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Rejects by reason code."""
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Column -> {"count", "bytes", "digest"}; the digest is over keys and bytes in key order."""
    index: str = ""
    """Digest of the index's contents."""


@dataclass(frozen=True)
class ShardIndex:
    """A shard's rows in key order: list `n` of each field is row `n`."""

    info: ShardInfo
    keys: list[str]
    reasons: list[str | None]
    works: list[str]
    meta: list[dict[str, Any]]
    members: dict[str, list[Span | None]]
    """Suffix -> where each row's member lies."""
    shared: dict[str, Span]
    """Full name -> where it lies."""

    def __len__(self) -> int:
        return len(self.keys)

    def suffix(self, n: int, column: str) -> str | None:
        """The member of row `n` that a column stands for: `image` is whichever of jpg, png, webp it has."""
        names = IMAGE if column == "image" else (column,)
        return next((s for s in names if s in self.members and self.members[s][n]), None)

    def member(self, n: int, column: str) -> Span | None:
        suffix = self.suffix(n, column)
        return self.members[suffix][n] if suffix else None

    def digests(self, n: int, columns: Sequence[str]) -> tuple[str, ...]:
        """sha256 of each column's bytes in row `n`; "" where it has none."""
        return tuple(span[2] if (span := self.member(n, c)) else "" for c in columns)


def canonical(value: Any) -> bytes:
    """JSON with one spelling: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def indexed(head: dict[str, Any], **rows: Any) -> ShardIndex:
    """The index with its digests, from the head and the rows."""
    digest = hashlib.sha256(canonical([{k: v for k, v in head.items() if k != "digest"}, rows])).hexdigest()
    index = ShardIndex(
        info=ShardInfo(name="", split="", samples=0, rejected=0, bytes=0, sha256=""),
        shared={name: _span(value) for name, value in head["shared"].items()},
        **rows,
    )
    reasons: dict[str, int] = {}
    for reason in filter(None, index.reasons):
        reasons[reason] = reasons.get(reason, 0) + 1
    names = [*index.members, *({n.partition(".")[2] for n in index.shared} - set(index.members))]
    names += ["image"] if any(suffix in index.members for suffix in IMAGE) else []
    info = ShardInfo(
        name=head["name"],
        split=head["split"],
        samples=head["count"],
        rejected=sum(reasons.values()),
        bytes=head["size"],
        sha256=head["sha256"],
        reasons=dict(sorted(reasons.items())),
        columns={name: _column(index, name) for name in sorted(names)},
        index=digest,
    )
    if head["count"] != len(index.keys):
        raise ValueError("The index has other rows than it says.")
    return ShardIndex(**{**index.__dict__, "info": info})


def _column(index: ShardIndex, name: str) -> dict[str, Any]:
    hasher, count, size = hashlib.sha256(), 0, 0
    spans = [(key, index.member(n, name)) for n, key in enumerate(index.keys)]
    spans += [(full, span) for full, span in index.shared.items() if full.partition(".")[2] == name]
    for key, span in spans:
        if span:
            hasher.update(f"{key}\0{span[2]}\n".encode())
            count, size = count + 1, size + span[1]
    return {"count": count, "bytes": size, "digest": hasher.hexdigest()}


def _span(value: Sequence[Any]) -> Span:
    offset, size, digest = value
    return (int(offset), int(size), str(digest))


def to_parquet(head: dict[str, Any], index: ShardIndex) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "key": pa.array(index.keys, pa.string()),
        "reason": pa.array(index.reasons, pa.string()),
        "work": pa.array(index.works, pa.string()),
    }
    for suffix, spans in index.members.items():
        for part, (what, kind) in enumerate(
            (("offset", pa.int64()), ("size", pa.int64()), ("digest", pa.string()))
        ):
            columns[f"{suffix}.{what}"] = pa.array([span[part] if span else None for span in spans], kind)
    encoded = []
    for name in sorted({name for meta in index.meta for name in meta}):
        values = [meta.get(name) for meta in index.meta]
        kinds = {type(value) for value in values if value is not None}
        kind = (
            {str: pa.string(), bool: pa.bool_(), float: pa.float64(), int: pa.int64()}.get(kinds.pop())
            if len(kinds) == 1
            else None
        )
        if kind is None or any(isinstance(v, int) and not -(2**63) <= v < 2**63 for v in values):
            # Mixed kinds and integers beyond 64 bits come back as they were only by way of JSON.
            encoded.append(name)
            kind, values = pa.string(), [None if v is None else canonical(v).decode() for v in values]
        columns[f"meta.{name}"] = pa.array(values, kind)
    metadata = {
        _HEAD: canonical({**head, "digest": index.info.index, "json": encoded}),
        _INFO: canonical(dataclasses.asdict(index.info)),
        b"latentmill.seal": BLANK,
    }
    # Which names a row has, an absent one and None being different things, is kept beside the values.
    columns["meta"] = pa.array([canonical(sorted(meta)).decode() for meta in index.meta], pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), sink, compression="zstd")
    return seal(sink.getvalue())


def from_parquet(data: bytes) -> ShardIndex:
    """`ValueError`, `KeyError` or one of Arrow's if it is not what was written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = sealed(data)
    # For a file as small as this, `read_table` and threads take longer than reading.
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    said = table.schema.metadata or {}
    if whole is not (_INFO in said):
        raise ValueError("the seal is gone")
    head = json.loads(said[_HEAD])
    rows = _rows(head.pop("json"), table)
    if whole:
        shared = {name: _span(value) for name, value in head["shared"].items()}
        return ShardIndex(info=ShardInfo(**json.loads(said[_INFO])), shared=shared, **rows)
    index = indexed(head, **rows)
    if head["digest"] != index.info.index:
        raise ValueError("the rows have another digest")
    return index


def _rows(encoded: Sequence[str], table: Any) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {name: table.column(name).to_pylist() for name in table.column_names}
    for name in encoded:
        columns[f"meta.{name}"] = [None if v is None else json.loads(v) for v in columns[f"meta.{name}"]]
    members: dict[str, list[Span | None]] = {}
    for name in columns:
        suffix = name.removesuffix(".offset")
        if suffix != name and not name.startswith("meta."):
            spans = zip(columns[name], columns[f"{suffix}.size"], columns[f"{suffix}.digest"], strict=True)
            members[suffix] = [None if span[0] is None else span for span in spans]
    return {
        "keys": columns["key"],
        "reasons": columns["reason"],
        "works": columns["work"],
        "meta": [
            {name: columns[f"meta.{name}"][n] for name in json.loads(names)}
            for n, names in enumerate(columns["meta"])
        ],
        "members": members,
    }
