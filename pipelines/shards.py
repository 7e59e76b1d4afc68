"""One shard: a deterministic tar, and beside it the parquet index whose appearance commits it."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from cluster.storage import Storage, digest_of
from pipelines.shard_index import IMAGE, ShardIndex, ShardInfo, canonical, from_parquet, indexed, to_parquet
from pipelines.stage import Row, Sample
from pipelines.tar import Span, TarWriter, scan

__all__ = [
    "IMAGE",
    "ShardError",
    "ShardFile",
    "ShardIndex",
    "ShardInfo",
    "canonical",
    "is_key",
    "read_index",
    "verify_shard",
    "write_shard",
]

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_KEY_LENGTH = 80
"""So that with its suffix a member's name fits into USTAR's 100 bytes, which every reader understands."""


class ShardError(ValueError):
    """A shard that is missing, or not the bytes that were committed."""


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
    index = indexed(
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
    if not storage.put_if_absent(f"{name}.parquet", to_parquet(head, index)):
        return read_index(storage, name).info
    return index.info


def read_index(storage: Storage, name: str, expected: ShardInfo | None = None) -> ShardIndex:
    """The rows of a committed shard; `ShardError` if the index is missing or not what was written."""
    try:
        data = storage.read(f"{name}.parquet")
    except FileNotFoundError as error:
        raise ShardError(f"{storage.url}/{name}.parquet is missing: the shard is not committed.") from error
    try:
        index = from_parquet(data)
    except Exception as error:
        said = f"{storage.url}/{name}.parquet is damaged ({type(error).__name__})"
        raise ShardError(f"{said}; {_remedy(name)}.") from error
    if index.info.name != name or (expected and expected != index.info):
        raise ShardError(f"{storage.url}/{name}.parquet is not what was written; {_remedy(name)}.")
    return index


def verify_shard(storage: Storage, info: ShardInfo) -> Path:
    """Checks the tar's size and sha256 and gives it as a local file; `ShardError` if it differs."""
    with ShardFile(storage, info) as shard:
        return shard.path


class ShardFile:
    """A shard's tar, open and verified: its size and sha256 before anything is read from it.

    What this process has found right before is not read whole again; each member is then checked by its own
    digest. So every byte that is read was hashed once.
    """

    def __init__(self, storage: Storage, info: ShardInfo) -> None:
        """`ShardError` if it is not there or not what was written."""
        self._where, self._remedy = f"{storage.url}/{info.name}.tar", _remedy(info.name)
        try:
            self.path = storage.local(f"{info.name}.tar")
            self._file = self.path.open("rb")
        except FileNotFoundError as error:
            raise ShardError(f"{self._where} is missing; {self._remedy}.") from error
        self._hashed: tuple[int, int, int] | None = None
        """How the file was when this very handle read it whole."""
        try:
            self._verify(info)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, span: Span) -> bytes:
        """A member's bytes; `ShardError` if they are not those that were written."""
        offset, size, digest = span
        self._file.seek(offset)
        data = self._file.read(size)
        if self._hashed == _state(self._file) and len(data) == size:
            return data
        if hashlib.sha256(data).hexdigest() != digest:
            raise ShardError(f"{self._where} has other bytes than were written; {self._remedy}.")
        return data

    def _verify(self, info: ShardInfo) -> None:
        state = _state(self._file)
        if (str(self.path), info.sha256, state) in _verified:
            return
        if state[0] != info.bytes:
            raise ShardError(f"{self._where} has {state[0]} bytes instead of {info.bytes}; {self._remedy}.")
        if digest_of(self._file) != info.sha256:
            raise ShardError(f"{self._where} has other bytes than were written; {self._remedy}.")
        self._hashed = state
        _verified.add((str(self.path), info.sha256, state))


_verified: set[tuple[str, str, tuple[int, int, int]]] = set()
"""Files that this process has read whole and found right, by what changes when they do."""


def _state(file: BinaryIO) -> tuple[int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ino


def _remedy(name: str) -> str:
    return f"delete {name}.tar, {name}.parquet and manifest.json there and run again"


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
            tar.add(f"{row.key}.{suffix}", sample.members[suffix], sample.digests.get(suffix))
        for full, data in sorted(sample.shared.items()):
            if full not in shared:  # it lies with the first that has it, so that rows are read in one go
                tar.add(full, data)
            if shared.setdefault(full, data) != data:
                raise ValueError(f"Two samples of a shard share {full!r} with different bytes.")
        empty = dict.fromkeys(sample.members, b"")
        rows.append((row, Sample(key=sample.key, members=empty, meta=sample.meta, reject=sample.reject)))
    return rows, set(shared)
