"""What a source holds: one entry an input, with what the source says of it, and the key it will have."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.shards import canonical, is_key

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Names by which sources call their splits."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One input of a source; it ends as a sample or as a reject."""

    name: str
    """Within the source, "/" between folders."""
    where: str | int
    """What the source's reader finds it by."""
    digest: str
    """sha256 hex of its bytes; "" if they cannot be read."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the source says of it: text, label and whatever else; JSON types."""
    split: str | None = None
    """The split that the source states."""
    reject: str | None = None
    """Reason, where it is known without looking at the bytes."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All inputs of a source, by name."""

    entries: Sequence[Entry]
    ignored: int = 0
    """Files that are no inputs: neither image by name or magic, nor listed."""

    @functools.cached_property
    def digest(self) -> str:
        """Of the inputs' bytes and what is said of them; a touched, moved or repacked source keeps it."""
        rows = ([e.name, e.digest, e.facts, e.split, e.reject] for e in self.entries)
        return hashlib.sha256(b"\n".join(map(canonical, rows))).hexdigest()

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the labels, sorted; by value if all are whole numbers. A label's id is its place here."""
        labels = {str(e.facts["label"]) for e in self.entries if e.facts.get("label") is not None}
        if all(label.isdecimal() for label in labels):
            return sorted(labels, key=int)
        return sorted(labels)


class Reader(Protocol):
    """Reads inputs by `Entry.where`. Opened in the process that reads."""

    def read(self, where: str | int, limit: int) -> bytes:
        """At most `limit + 1` bytes, so that what is too large is known and not read.

        `OSError` if it cannot be read.
        """
        ...

    def digest(self, where: str | int, data: bytes) -> str:
        """What `Entry.digest` is if `data` is the whole of it."""
        ...


def keys(entries: Iterable[Entry]) -> list[str]:
    """A key for each entry, from its own name and nothing else, so that additions change no key.

    The name without its ending, "/" written as "__" where that can be read back, if it is legal; else 20 hex
    of the name's sha256. Of names that differ only in their ending the first in order has the plain key.
    """
    taken: set[str] = set()
    result = []
    for entry in entries:
        stem, dot, _ = entry.name.rpartition(".")
        parts = (stem if dot and "/" not in entry.name[len(stem) :] else entry.name).split("/")
        readable = all("__" not in p and not p.startswith("_") and not p.endswith("_") for p in parts)
        key = "__".join(parts)
        if not readable or not is_key(key) or key in taken:
            key = hashlib.sha256(encode(entry.name)).hexdigest()[:20]
        assert key not in taken, f"two inputs are named {entry.name!r}"
        taken.add(key)
        result.append(key)
    return result


def encode(name: str) -> bytes:
    """A file name's own bytes, those that are not UTF-8 included."""
    return name.encode("utf-8", "surrogateescape")


def printable(name: str) -> str:
    """A file name that JSON, Parquet and a terminal can hold."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
