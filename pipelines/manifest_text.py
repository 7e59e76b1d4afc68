"""A manifest's shards from its text, as lists: of hundreds of thousands, objects take seconds and GiB."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.shard_index import canonical

NONE = "0" * 64
_TOGETHER = 1 << 18
"""Bytes of a manifest that are objects at once."""
_OPENS, _CLOSES, _PARTS = b'\n "shards": [\n', b"\n ]", b"\n  },\n  {"
"""Where the list begins and ends in a manifest as it is laid out, and between two entries: a line break
followed by so few spaces stands nowhere else."""
_QUOTE = b'\\"'
"""With it in a text, a quote is not the end of a word for sure."""

Fields = Mapping[str, Sequence[Any]]
"""A list of each field of several entries."""
ABSENT = {"count": -1, "bytes": 0, "digest": NONE}


@dataclass(frozen=True)
class Part:
    """Entries that follow one another, as lists."""

    length: int
    fields: Fields
    columns: Mapping[str, Fields]

    @staticmethod
    def of(entries: Sequence[Mapping[str, Any]]) -> Part:
        columns = [entry.get("columns", {}) for entry in entries]
        return Part(
            len(entries),
            {
                "index": [entry.get("index", "") for entry in entries],
                "reasons": [entry.get("reasons", {}) for entry in entries],
                **{name: [entry[name] for entry in entries] for name in _FIELDS},
            },
            {
                name: {what: [of.get(name, ABSENT)[what] for of in columns] for what in ABSENT}
                for name in dict.fromkeys(itertools.chain.from_iterable(columns))
            },
        )


_FIELDS = ("name", "split", "samples", "rejected", "bytes", "sha256")


def cut(data: bytes) -> tuple[bytes, Iterator[bytes]] | None:
    """A manifest's text without its shards, and their entries' text, a few at a time; None if it is not laid
    out as `write_manifest` does."""
    start = data.find(_OPENS)
    end = data.find(_CLOSES, start)
    if start < 0 or end < 0:
        return None

    def parts(at: int) -> Iterator[bytes]:
        while at < end:
            stop = data.find(_PARTS, at + _TOGETHER, end)
            stop = end if stop < 0 else stop + _PARTS.index(b",")
            yield b"[\n" + data[at:stop] + b"]"
            at = stop + 1

    return data[:start] + b'\n "shards": []' + data[end + len(_CLOSES) :], parts(start + len(_OPENS))


def spelt(text: bytes, value: Callable[[], Any]) -> bytes:
    """`canonical` of what an indented text says, in a third of the time; the text's own bytes but for blanks
    between words, so that what was written otherwise is told by its digest."""
    if _QUOTE in text:
        return canonical(value())
    return b"".join(map(bytes.lstrip, text.split(b"\n"))).replace(b'": ', b'":')


def turned(text: bytes) -> Part:
    """Entries from their text: field by field where all have the same lines, in a fifth of the time that
    objects take. `ValueError`, `KeyError`, `TypeError` or `AttributeError` for what are none."""
    return _by_lines(text) or Part.of(json.loads(text))


def _by_lines(text: bytes) -> Part | None:
    """None if the entries differ in more than in values."""
    lines = text[1:-1].strip(b"\n").split(b"\n")
    each = lines.index(b"  },") + 1 if b"  }," in lines else len(lines)
    if _QUOTE in text or len(lines) % each:
        return None
    lines[-1] += b","
    length, fields, columns = len(lines) // each, {}, {}
    path: list[str] = []
    for n in range(1, each - 1):
        values = lines[n::each]
        key, colon, value = values[0].partition(b'": ')
        alike = values.count(values[0]) == length
        if not colon or value == b"{":
            if not alike:
                return None
            path = [*path, json.loads(key.lstrip() + b'"')] if colon else path[:-1]
            continue
        comma = value.endswith(b",")
        if alike:
            found = [json.loads(value.rstrip(b","))] * length
        else:
            joined = (b"" if comma else b",").join(values)
            if joined.count(key + colon) != length:
                return None
            found = json.loads(b"[" + joined.replace(key + colon, b"").removesuffix(b",") + b"]")
        name = json.loads(key.lstrip() + b'"')
        if not path:
            fields[name] = found
        elif len(path) == 2 and path[0] == "columns":
            columns.setdefault(path[1], {})[name] = found
        else:
            return None
    right = all(set(ABSENT) == set(of) for of in columns.values()) and {*_FIELDS, "index", "reasons"} <= set(
        fields
    )
    return Part(length, fields, columns) if right else None
