"""What a source holds: one entry an input, with what the source says of it, and the key it will have."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.shards import is_key

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
    key: str
    """From its own name and nothing else, so that additions change no key."""
    where: Any
    """What the source's reader finds it by."""
    digest: str
    """sha256 hex of its bytes; "" if they cannot be read."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the source says of it: text, label and whatever else; JSON types."""
    split: str | None = None
    """The split that the source states."""
    reject: str | None = None
    """Reason, where it is known without looking at the bytes."""
    fault: str | None = None
    """Reason, by what the bytes say of themselves."""
    kind: str | None = None
    width: int | None = None
    height: int | None = None
    """px, upright, by the header."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All inputs of a source, by name."""

    entries: Sequence[Entry]
    ignored: int = 0
    """Files that are no inputs: neither image by name or magic, nor listed."""

    digest: str = ""
    """Of the inputs' bytes and what is said of them; a touched, moved or repacked source keeps it."""

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the labels, sorted; by value if all are whole numbers. A label's id is its place here."""
        return ordered({str(e.facts["label"]) for e in self.entries if e.facts.get("label") is not None})


def ordered(labels: Iterable[str]) -> list[str]:
    """Class names in the order of their ids: by value if all are whole numbers."""
    labels = set(labels)
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)


def plain_key(name: str) -> str | None:
    """The name without its ending, "/" written as "__" where that can be read back; None if not legal."""
    stem, dot, _ = name.rpartition(".")
    parts = (stem if dot and "/" not in name[len(stem) :] else name).split("/")
    readable = all("__" not in p and not p.startswith("_") and not p.endswith("_") for p in parts)
    key = "__".join(parts)
    return key if readable and is_key(key) else None


def hashed_key(name: str) -> str:
    """20 hex of the whole name: for a name that is not legal, and for all but the first of equal ones."""
    return hashlib.sha256(encode(name)).hexdigest()[:20]


def encode(name: str) -> bytes:
    """A file name's own bytes, those that are not UTF-8 included."""
    return name.encode("utf-8", "surrogateescape")


def printable(name: str) -> str:
    """A file name that JSON, Parquet and a terminal can hold."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
