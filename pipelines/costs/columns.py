"""Bytes of a dataset's columns, as they lie in its tars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BLOCK = 512
"""Of a tar: a member has one in front, and is padded to whole ones."""
NPY = 128
"""Bytes in front of an array's numbers."""
INDEX = "index"
"""What the tables beside the tars take, under the columns."""
ROW = 250.0
"""Bytes of a sample in that table, where none is there yet; measured: ingest and encode of quickstart."""


def member(length: float) -> float:
    """Bytes of a member of `length` bytes, header and padding included."""
    return BLOCK + BLOCK * -(-length // BLOCK)


def array(*shape: float, itemsize: int = 2) -> float:
    """The same of an fp16 array."""
    count = 1.0
    for side in shape:
        count *= side
    return member(NPY + count * itemsize)


def total(columns: Mapping[str, float], samples: int) -> float:
    """Bytes of a dataset."""
    return samples * sum(columns.values())


def held(shards: Sequence[Mapping[str, Any]], samples: int, *, row: float = ROW) -> dict[str, float]:
    """Bytes an image of each column of a finished dataset, by what its manifest says of its shards; `row` is
    what a row of the tables beside its tars takes.

    `image` is jpg, png or webp, under which it is listed too. What tars hold beside their members' bytes is
    shared out by the number of members.
    """
    bytes_, counts = {}, {}
    for shard in shards:
        for name, column in shard.get("columns", {}).items():
            if name != "image":
                bytes_[name] = bytes_.get(name, 0) + column["bytes"]
                counts[name] = counts.get(name, 0) + column["count"]
    spare = sum(shard.get("bytes", 0) for shard in shards) - sum(bytes_.values())
    members, samples = max(1, sum(counts.values())), max(1, samples)
    found = {name: (bytes_[name] + spare * counts[name] / members) / samples for name in sorted(bytes_)}
    return {**found, INDEX: row} if found else {}
