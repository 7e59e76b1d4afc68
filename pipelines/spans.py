"""A shard's index as arrays: what reading its members takes, in a tenth of the memory of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.storage import Storage
from pipelines.sealing import sealed
from pipelines.shard_index import IMAGE, ShardIndex, ShardInfo, from_parquet
from pipelines.shards import ShardError
from pipelines.tar import Span

if TYPE_CHECKING:
    import numpy as np

_NONE, _END = "0" * 64, 1 << 62


@dataclass(frozen=True, eq=False)
class Places:
    """Where the members of one suffix lie, by row."""

    offset: np.ndarray
    """int64; -1 where the row has none."""
    size: np.ndarray
    digest: np.ndarray
    """sha256, uint8 [n, 32]."""


@dataclass(frozen=True, eq=False)
class Among:
    """Where shared members lie between the rows."""

    starts: np.ndarray
    """First offset of each row, or of the next one that has members; int64."""
    spans: np.ndarray
    """Offset and size of each, int64 [n, 2], ascending; those of the last row, behind which all lay once,
    left out."""
    each: int
    """How many a row reads, by the number of their suffixes."""


@dataclass(frozen=True, eq=False)
class Spans:
    """Array element `n` is row `n`."""

    info: ShardInfo
    keys: str
    """Digest of all keys."""
    rejected: np.ndarray
    """bool."""
    members: dict[str, Places]
    shared: dict[str, Span]
    sizes: np.ndarray | None
    """Width and height that the row's facts say, px, int32 [n, 2]; 0 where they do not."""
    among: Among | None
    """None without shared members."""

    @property
    def nbytes(self) -> int:
        """Of memory, roughly."""
        rows = len(self.rejected)
        return rows * (1 + 48 * len(self.members) + 16) + 416 * len(self.shared) + 2000

    def has(self, column: str) -> np.ndarray:
        """Which rows have it, bool; `image` is jpg, png or webp."""
        import numpy as np

        found = np.zeros(len(self.rejected), bool)
        for suffix in _suffixes(column):
            if suffix in self.members:
                found |= self.members[suffix].offset >= 0
        return found

    def member(self, n: int, column: str) -> tuple[int, int, bytes] | None:
        """Offset, size and sha256; None where the row has none."""
        for suffix in _suffixes(column):
            places = self.members.get(suffix)
            if places is not None and places.offset[n] >= 0:
                return int(places.offset[n]), int(places.size[n]), places.digest[n].tobytes()
        return None

    def reach(
        self, first: int, end: int, columns: Sequence[str], *, shared: bool = False
    ) -> tuple[int, int, int]:
        """Of the columns of rows `first` to `end`: first offset, the one behind the last, and their bytes.

        `shared`: so too of the shared members between them, of whose bytes each row reads one caption's.
        """
        low, high, total = _END, 0, 0
        for suffix in dict.fromkeys(suffix for column in columns for suffix in _suffixes(column)):
            places = self.members.get(suffix)
            if places is None:
                continue
            offset, size = places.offset[first:end], places.size[first:end]
            there = offset >= 0
            if there.any():
                low = min(low, int(offset[there].min()))
                high = max(high, int((offset + size)[there].max()))
                total += int(size[there].sum())
        if shared and self.among is not None:
            starts, spans = self.among.starts, self.among.spans
            edges = [starts[first], starts[end] if end < len(starts) else _END]
            i, j = spans[:, 0].searchsorted(edges).tolist()
            if i < j:
                low, high = min(low, int(spans[i, 0])), max(high, int(spans[j - 1].sum()))
                read = min(1.0, (end - first) * self.among.each / (j - i))
                total += int(spans[i:j, 1].sum() * read)
        return low, high, total


def _suffixes(column: str) -> Sequence[str]:
    return IMAGE if column == "image" else (column,)


def spans_of(storage: Storage, info: ShardInfo, data: bytes) -> Spans:
    """From the bytes of a shard's parquet; `ShardError` if they are not what the manifest says."""
    where = f"{storage.url}/{info.name}.parquet"
    try:
        found = _read(data)
    except Exception as error:
        remedy = f"delete {info.name}.tar, {info.name}.parquet and manifest.json there and run again"
        raise ShardError(f"{where} is damaged ({type(error).__name__}); {remedy}.") from error
    if found.info != info:
        raise ShardError(f"{where} is not what was written.")
    return found


def from_index(index: ShardIndex) -> Spans:
    """From rows in memory."""
    import numpy as np

    members = {
        suffix: Places(
            np.array([span[0] if span else -1 for span in spans], np.int64),
            np.array([span[1] if span else 0 for span in spans], np.int64),
            _digests([span[2] if span else None for span in spans]),
        )
        for suffix, spans in index.members.items()
    }
    sizes = [(meta.get("width") or 0, meta.get("height") or 0) for meta in index.meta]
    return Spans(
        info=index.info,
        keys=_keys(index.keys),
        rejected=np.array([reason is not None for reason in index.reasons], bool),
        members=members,
        shared=dict(index.shared),
        sizes=np.array(sizes, np.int32).reshape(-1, 2) if any(map(any, sizes)) else None,
        among=_among(members, dict(index.shared), len(index.keys)),
    )


def _read(data: bytes) -> Spans:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not sealed(data):
        return from_index(from_parquet(data))
    file = pq.ParquetFile(pa.BufferReader(data))
    names = [name for name in file.schema_arrow.names if name != "work" and not name.startswith("meta")]
    facts = [name for name in ("meta.width", "meta.height") if name in file.schema_arrow.names]
    table = file.read(columns=names + facts, use_threads=False)
    said = table.schema.metadata
    head: dict[str, Any] = json.loads(said[b"latentmill"])
    members = {}
    for name in names:
        suffix = name.removesuffix(".offset")
        if suffix != name:
            members[suffix] = Places(
                table.column(name).combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False),
                table.column(f"{suffix}.size").combine_chunks().fill_null(0).to_numpy(zero_copy_only=False),
                _digests(table.column(f"{suffix}.digest").to_pylist()),
            )
    sizes = None
    # Facts of mixed kinds are kept as JSON, and are no sizes.
    if len(facts) == 2 and all(pa.types.is_integer(table.schema.field(name).type) for name in facts):
        sizes = np.stack(
            [
                table.column(name).combine_chunks().fill_null(0).to_numpy(zero_copy_only=False)
                for name in facts
            ],
            axis=1,
        ).astype(np.int32)
    shared = {name: (int(o), int(s), str(d)) for name, (o, s, d) in head["shared"].items()}
    return Spans(
        info=ShardInfo(**json.loads(said[b"latentmill.info"])),
        keys=_keys(table.column("key").to_pylist()),
        rejected=table.column("reason").combine_chunks().is_valid().to_numpy(zero_copy_only=False),
        members=members,
        shared=shared,
        sizes=sizes,
        among=_among(members, shared, len(table)),
    )


def _among(members: Mapping[str, Places], shared: Mapping[str, Span], rows: int) -> Among | None:
    import numpy as np

    if not shared or not rows:
        return None
    starts = np.full(rows, _END, np.int64)
    for places in members.values():
        starts = np.minimum(starts, np.where(places.offset >= 0, places.offset, _END))
    starts = np.minimum.accumulate(starts[::-1])[::-1]
    spans = np.array(sorted(span[:2] for span in shared.values()), np.int64)
    last = starts[starts < _END].max(initial=-1)
    return Among(starts, spans[spans[:, 0] < last], len({name.partition(".")[2] for name in shared}))


def _digests(digests: Sequence[str | None]) -> np.ndarray:
    import numpy as np

    joined = bytes.fromhex("".join(digest or _NONE for digest in digests))
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def _keys(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()
