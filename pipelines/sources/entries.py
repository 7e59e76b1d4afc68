"""From what was seen in a source's parts to its inputs: each image with its metadata, its text, and its key.

A task joins what falls into one range of names; nothing is held for a whole source.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from pipelines.shards import canonical
from pipelines.sources.layout import label_of, split_of
from pipelines.sources.listing import hashed_key, plain_key, printable
from pipelines.sources.said import joined
from pipelines.sources.sightings import packed, table, unit


@dataclass(frozen=True, kw_only=True)
class Range:
    """What falls into it is joined by one task."""

    name: str
    """Of the file that is made."""
    low: int
    high: int
    """Exclusive, up to 2^64."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What the driver is told of a range."""

    file: str
    count: int
    bytes: int
    digest: str
    ignored: int
    """Files that are no inputs: neither image by name or magic, nor named."""
    captioned: int
    labels: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Joiner:
    """Opens what joins a range: the executor's factory."""

    place: Storage
    seen: tuple[str, ...]
    """Files of what was seen."""
    labels: bool
    """Whether folders name labels."""
    splits: bool
    """Whether folders name splits."""

    def __call__(self) -> Any:
        return self.join

    def join(self, part: Range) -> Joined:
        if not self.place.exists(part.name):
            self.place.put_if_absent(part.name, self._joined(part))
        return _told(self.place, part.name)

    def _joined(self, part: Range) -> bytes:
        rows = table(self.place, self.seen, part.low, part.high)
        rows = rows.sort_by([("place", "ascending"), ("name", "ascending"), ("where", "ascending")])
        found: list[dict[str, Any]] = []
        ignored = 0
        for group in _groups(rows.to_pylist()):
            entries, unused = self._meet(group)
            found += entries
            ignored += unused
        return _parquet(found, ignored)

    def _meet(self, group: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        """Images of one stem with what is said of them, and how many files are none of them."""
        images = {row["name"]: row for row in group if not row["side"]}
        several = _once([row for row in group if not row["side"]])
        said: dict[bytes, dict[str, Any]] = {}
        stated: dict[bytes, str] = {}
        for row in group:
            if row["side"] == "facts":
                said.setdefault(row["name"], {}).update(json.loads(row["facts"]))
                if row["split"]:
                    stated[row["name"]] = row["split"]
        texts = {posixpath.splitext(row["name"])[0]: row for row in group if row["side"] == "text"}
        used: set[bytes] = set()
        entries, taken = [], set()
        for row in several:
            name = row["name"]
            facts = {**json.loads(row["facts"]), **said.get(name, {})}
            side = texts.get(posixpath.splitext(name)[0])
            if side is not None:
                used.add(side["name"])
                if "text" not in facts:
                    facts |= json.loads(side["facts"])
            entries.append(self._entry(row, facts, stated.get(name) or row["split"], taken))
        files = {row["name"]: row for row in group if row["side"] in ("file", "text")}
        for name, facts in said.items():
            if name in images:
                continue
            # What metadata names and is no image is an input all the same, and rejected.
            bare = {"name": name, "where": "null", "digest": "", "key": None}
            reject = "not_an_image" if name in files else "missing"
            used |= {name} & files.keys()
            entries.append(self._entry({**bare, "reject": reject}, facts, stated.get(name), taken))
        return entries, len(files) - len(used)

    def _entry(
        self, row: Mapping[str, Any], facts: dict[str, Any], split: str | None, taken: set[str]
    ) -> dict[str, Any]:
        name = row["name"].decode("utf-8", "surrogateescape")
        if self.labels and "label" not in facts and (label := label_of(name, splits=self.splits)):
            facts["label"] = printable(label)
        if split is None and self.splits:
            split = split_of(name)
        key = row["key"] or plain_key(name)
        if key is None or key in taken:
            key = hashed_key(name)
        taken.add(key)
        label = facts.get("label")
        return {
            "place": unit(key),
            "key": key,
            "name": row["name"],
            "where": row["where"],
            "stamp": row.get("stamp"),
            "digest": row["digest"],
            "size": row.get("size"),
            "kind": row.get("kind"),
            "width": row.get("width"),
            "height": row.get("height"),
            "reject": row["reject"],
            "fault": row.get("fault"),
            "facts": canonical(facts).decode(),
            "split": split,
            "label": None if label is None else str(label),
            "text": "text" in facts,
            "hash": row.get("hash"),
            "mirrored": row.get("mirrored"),
            "sound": row.get("sound"),
            "look_file": row.get("look_file"),
            "look": row.get("look"),
        }


def _once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Images; one that several parts name, as rows of captions do, is one with all that they say of it."""
    found: dict[tuple[bytes, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["name"], row["where"], row["facts"])):
        # What lies nowhere is not known to be the same.
        place = (row["name"], row["where"]) if row["where"] != "null" else (row["name"], str(len(found)))
        first = found.setdefault(place, row)
        if first is not row:
            facts = joined(json.loads(first["facts"]), json.loads(row["facts"]))
            both = {name: first[name] or row[name] for name in ("key", "split")}
            found[place] = {**first, **both, "facts": canonical(facts).decode()}
    return list(found.values())


def ranges(rows: int, folder: str, *, each: int = 1 << 18) -> list[Range]:
    """A power of two of ranges, of about `each` rows at most."""
    number = 1 << max(0, -(-rows // each) - 1).bit_length()
    step = (1 << 64) // number
    return [Range(name=f"{folder}/{n:05d}.parquet", low=n * step, high=(n + 1) * step) for n in range(number)]


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    start = 0
    for n in range(1, len(rows) + 1):
        if n == len(rows) or rows[n]["place"] != rows[start]["place"]:
            yield list(rows[start:n])
            start = n


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "place": pa.uint64(),
            "key": pa.string(),
            "name": pa.binary(),
            "where": pa.string(),
            "stamp": pa.string(),
            "digest": pa.string(),
            "size": pa.int64(),
            "kind": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "reject": pa.string(),
            "fault": pa.string(),
            "facts": pa.string(),
            "split": pa.string(),
            "label": pa.string(),
            "text": pa.bool_(),
            "hash": pa.uint64(),
            "mirrored": pa.uint64(),
            "sound": pa.bool_(),
            "look_file": pa.string(),
            "look": pa.int32(),
        }
    )


def _parquet(entries: list[dict[str, Any]], ignored: int) -> bytes:
    import pyarrow as pa

    hasher = hashlib.sha256()
    labels: dict[str, int] = {}
    for n, entry in enumerate(sorted(entries, key=lambda entry: entry["name"])):
        name = entry["name"].decode("utf-8", "surrogateescape")
        said = [name, entry["digest"], json.loads(entry["facts"]), entry["split"], entry["reject"]]
        hasher.update((b"\n" if n else b"") + canonical(said))
        if entry["label"] is not None:
            labels[entry["label"]] = labels.get(entry["label"], 0) + 1
    told = {
        "digest": hasher.hexdigest(),
        "bytes": sum(entry["size"] or 0 for entry in entries),
        "ignored": ignored,
        "captioned": sum(entry["text"] for entry in entries),
        "labels": dict(sorted(labels.items())),
    }
    entries.sort(key=lambda entry: (entry["place"], entry["key"]))
    made = pa.Table.from_pylist(entries, schema=_schema())
    return packed(made.replace_schema_metadata({b"latentmill": canonical(told)}))


def _told(place: Storage, name: str) -> Joined:
    import pyarrow.parquet as pq

    head = pq.read_metadata(place.local(name))
    return Joined(file=name, count=head.num_rows, **json.loads(head.metadata[b"latentmill"]))
