"""One shard: a deterministic tar, and beside it the parquet index whose appearance commits it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.storage import Storage, digest_of
from pipelines.stage import Row, Sample
from pipelines.tar import Span, TarWriter, scan

IMAGE = ("jpg", "png", "webp")
"""Suffixes that the column name `image` stands for."""

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_KEY_LENGTH = 80
"""So that with its suffix a member's name fits into USTAR's 100 bytes, which every reader understands."""


class ShardError(ValueError):
    """A shard that is missing, or not the bytes that were committed."""


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


def is_key(name: str) -> bool:
    """Whether a source's own name can be a key: ASCII letters, digits, _ and -; at most 80."""
    return len(name) <= _KEY_LENGTH and _KEY.fullmatch(name) is not None


def write_shard(
    storage: Storage,
    name: str,
    samples: Iterable[tuple[Row, Sample]],
    *,
    split: str,
    work: Callable[[Row], str] = lambda row: "",
) -> ShardInfo:
    """Writes and commits shard `name` from pairs in ascending key order; one that is committed is kept.

    A tar without its index, which another driver is about to commit or was killed before, is adopted if it is
    whole and holds the same members: so a tar and its index cannot come from different drivers unnoticed.
    """
    with tempfile.TemporaryDirectory(prefix="shard-") as folder:
        path = Path(folder) / "shard.tar"
        with path.open("wb") as file:
            tar = TarWriter(file)
            rows, shared = _write_members(tar, samples)
            tar.close()
        if not storage.put_if_absent(f"{name}.tar", path) and not storage.exists(f"{name}.parquet"):
            found = scan(storage.local(f"{name}.tar"))
            if found is None or found.names() != tar.names():
                storage.delete(f"{name}.tar")
                storage.put_if_absent(f"{name}.tar", path)
            else:
                tar = found
    spans = dict(tar.spans)
    head = {
        "format": 1,
        "name": name,
        "split": split,
        "count": len(rows),
        "size": tar.size,
        "sha256": tar.sha256,
        "shared": {full: list(spans[full]) for full in sorted(shared)},
    }
    index = _index(
        head,
        keys=[row.key for row, _ in rows],
        reasons=[sample.reject for _, sample in rows],
        works=[work(row) for row, _ in rows],
        meta=[dict(sample.meta) for _, sample in rows],
        members={
            suffix: [spans.get(f"{row.key}.{suffix}") for row, _ in rows]
            for suffix in sorted({s for _, sample in rows for s in sample.members})
        },
    )
    if not storage.put_if_absent(f"{name}.parquet", _to_parquet(head, index)):
        return read_index(storage, name).info
    return index.info


def read_index(storage: Storage, name: str, expected: ShardInfo | None = None) -> ShardIndex:
    """The rows of a committed shard; `ShardError` if the index is missing or not what was written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = storage.read(f"{name}.parquet")
    except FileNotFoundError as error:
        raise ShardError(f"{storage.url}/{name}.parquet is missing: the shard is not committed.") from error
    try:
        table = pq.read_table(pa.BufferReader(data))
        head = json.loads((table.schema.metadata or {})[b"latentmill"])
        index = _from_table(head, table)
    except Exception as error:
        raise ShardError(f"{storage.url}/{name}.parquet is damaged ({type(error).__name__}).") from error
    if head["name"] != name or head["digest"] != index.info.index or (expected and expected != index.info):
        raise ShardError(
            f"{storage.url}/{name}.parquet is not what was written; delete the shard and run again."
        )
    return index


def verify_shard(storage: Storage, info: ShardInfo) -> Path:
    """Checks the tar's size and sha256 and gives it as a local file; `ShardError` if it differs."""
    where = f"{storage.url}/{info.name}.tar"
    try:
        path = storage.local(f"{info.name}.tar")
        state = path.stat()
    except FileNotFoundError as error:
        raise ShardError(f"{where} is missing; delete {info.name}.parquet and run again.") from error
    seen = (str(path), state.st_size, state.st_mtime_ns, state.st_ino, info.sha256)
    if seen in _verified:
        return path
    if state.st_size != info.bytes:
        raise ShardError(
            f"{where} has {state.st_size} bytes instead of {info.bytes}; delete the shard and run again."
        )
    with path.open("rb") as file:
        if digest_of(file) != info.sha256:
            raise ShardError(f"{where} has other bytes than were written; delete the shard and run again.")
    _verified.add(seen)
    return path


_verified: set[tuple[str, int, int, int, str]] = set()
"""Files that this process has read whole and found right, by what changes when they do."""


def _write_members(
    tar: TarWriter, samples: Iterable[tuple[Row, Sample]]
) -> tuple[list[tuple[Row, Sample]], set[str]]:
    """Writes the members as they come; gives the samples back without their bytes, and the shared names."""
    rows: list[tuple[Row, Sample]] = []
    shared: dict[str, bytes] = {}
    last = ""
    for row, sample in samples:
        if row.key != sample.key or row.key <= last:
            raise ValueError(
                f"Sample {sample.key!r} is out of order: keys ascend and each row gets its own sample."
            )
        if sample.reject and (sample.members or sample.shared):
            raise ValueError(f"Sample {sample.key!r} is rejected and yet has members.")
        last = row.key
        for suffix in sorted(sample.members):
            tar.add(f"{row.key}.{suffix}", sample.members[suffix])
        for full, data in sample.shared.items():
            if shared.setdefault(full, data) != data:
                raise ValueError(f"Two samples of a shard share {full!r} with different bytes.")
        empty = dict.fromkeys(sample.members, b"")
        rows.append((row, Sample(key=sample.key, members=empty, meta=sample.meta, reject=sample.reject)))
    for full in sorted(shared):
        tar.add(full, shared[full])
    return rows, set(shared)


def _index(head: dict[str, Any], **rows: Any) -> ShardIndex:
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


def _to_parquet(head: dict[str, Any], index: ShardIndex) -> bytes:
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
    metadata = {"latentmill": canonical({**head, "digest": index.info.index, "json": encoded})}
    # Which names a row has, an absent one and None being different things, is kept beside the values.
    columns["meta"] = pa.array([canonical(sorted(meta)).decode() for meta in index.meta], pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), sink, compression="zstd")
    return sink.getvalue()


def _from_table(head: dict[str, Any], table: Any) -> ShardIndex:
    columns: dict[str, list[Any]] = {name: table.column(name).to_pylist() for name in table.column_names}
    for name in head["json"]:
        columns[f"meta.{name}"] = [None if v is None else json.loads(v) for v in columns[f"meta.{name}"]]
    members: dict[str, list[Span | None]] = {}
    for name in columns:
        suffix = name.removesuffix(".offset")
        if suffix != name and not name.startswith("meta."):
            spans = zip(columns[name], columns[f"{suffix}.size"], columns[f"{suffix}.digest"], strict=True)
            members[suffix] = [None if span[0] is None else _span(span) for span in spans]
    head = {k: v for k, v in head.items() if k != "json"}
    return _index(
        head,
        keys=columns["key"],
        reasons=columns["reason"],
        works=columns["work"],
        meta=[
            {name: columns[f"meta.{name}"][n] for name in json.loads(names)}
            for n, names in enumerate(columns["meta"])
        ],
        members=members,
    )
