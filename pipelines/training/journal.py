"""What a training left out, and why: beside its checkpoints, one small JSON an entry, written before anything
else is done about it.

An entry is numbered and never altered; it holds a digest of itself. `NUMBER.done` says that what the training
did beyond it is deleted: a kill between the two is made good by whoever reads the entry next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.storage import Storage

FOLDER = "journal"
NAME = re.compile(r"(\d{6})\.json")
CHECKPOINT = re.compile(r"((\d{12})-\d{6})\b.*")
AVERAGES = re.compile(r"(averages-(\d{12}))(?:-of-(\d{12}))?\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A rollback. Places are images seen; all are where a batch begins."""

    reason: str
    first: int
    """Where the first bad step began."""
    last: int
    """Where the last one ended."""
    begin: int
    """Batches that begin from here on are left out, up to ..."""
    end: int
    """... here, where the first begins that is not. As large as `begin` if none is left out."""
    restart: int
    """The checkpoint that the training went back to; 0 if it began anew."""
    cooling: bool
    """Whether the learning rate was falling at `end`: then it binds only trainings of the same `target`."""
    target: int
    """`images_seen` at which the training that wrote it was to end."""
    replicas: tuple[int, ...] | None = None
    """Ranks whose weights were damaged, as far as is known, where that was the reason."""

    @property
    def said(self) -> str:
        what = f"the batches of images {self.begin:,} to {self.end:,} are left out"
        return f"{self.reason}: {what if self.end > self.begin else 'no batch is left out'}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a checkpoint says of itself (`checkpoint.Mark`)."""

    images_seen: int
    cooling: bool
    target: int


@dataclass(frozen=True)
class Journal:
    """Of all lengths of one training."""

    checkpoints: Storage
    """The folder that it lies in, and that what an entry makes void is deleted from."""

    def read(self) -> tuple[list[Entry], list[str]]:
        """Entries in their order, and names of damaged ones. Finishes what a killed process had begun."""
        storage = self.checkpoints.folder(FOLDER)
        names = storage.list()
        entries: list[Entry] = []
        damaged: list[str] = []
        for name in names:
            found = NAME.fullmatch(name)
            if found is None:
                continue
            entry = _parsed(storage.read(name))
            if entry is None:
                damaged.append(name)
                continue
            entries.append(entry)
            if f"{found[1]}.done" not in names:
                self._void(entry, found[1])
        return entries, damaged

    def add(self, entry: Entry) -> None:
        """Durable when it returns, and everything that the training did beyond `entry.restart` is gone."""
        storage = self.checkpoints.folder(FOLDER)
        record = {"format": 1, **dataclasses.asdict(entry)}
        record["check"] = _check(record)
        data = json.dumps(record, sort_keys=True, indent=1).encode()
        number = 1 + max((int(n[1]) for name in storage.list() if (n := NAME.fullmatch(name))), default=0)
        while not storage.put_if_absent(f"{number:06d}.json", data):
            number += 1
        self._void(entry, f"{number:06d}")

    def places(self, usable: Callable[[Place], bool]) -> list[int]:
        """Of the checkpoints that `usable` accepts, ascending; whether they are whole nobody has looked."""
        return sorted({place.images_seen for place in self._checkpoints().values() if usable(place)})

    def _checkpoints(self) -> dict[str, Place]:
        """By name without its ending."""
        found: dict[str, Place] = {}
        for name in self.checkpoints.list():
            if CHECKPOINT.fullmatch(name) is None or not name.endswith(".json"):
                continue
            with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError):
                record = json.loads(self.checkpoints.read(name))
                found[name.removesuffix(".json")] = Place(
                    images_seen=record["images_seen"], cooling=record["cooling"], target=record["target"]
                )
        return found

    def _void(self, entry: Entry, number: str) -> None:
        """A training writes the same names again with other bytes, so the old ones may not stay."""
        spared = {
            stem
            for stem, place in self._checkpoints().items()
            if place.cooling and place.target != entry.target  # nobody else passes there
        }
        doomed = [
            name
            for name in self.checkpoints.list()
            if ((found := CHECKPOINT.fullmatch(name)) and found[1] not in spared)
            or ((found := AVERAGES.fullmatch(name)) and found[3] in (None, f"{entry.target:012d}"))
            if int(found[2]) > entry.restart
        ]
        # A checkpoint's JSON first: without it, tensors are only space.
        for name in sorted(doomed, key=lambda name: (not name.endswith(".json"), name)):
            self.checkpoints.delete(name)
        self.checkpoints.folder(FOLDER).put_if_absent(f"{number}.done", b"")


def encoded(entries: Sequence[Entry], damaged: Sequence[str]) -> bytes:
    """For other ranks: what one has read."""
    return json.dumps([[dataclasses.asdict(entry) for entry in entries], list(damaged)]).encode()


def decoded(data: bytes) -> tuple[list[Entry], list[str]]:
    entries, damaged = json.loads(data)
    return [_entry(entry) for entry in entries], damaged


def _parsed(data: bytes) -> Entry | None:
    try:
        record = json.loads(data)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.pop("check", None) != _check(record):
        return None
    names = {field.name for field in dataclasses.fields(Entry)}
    if record.pop("format", None) != 1 or record.keys() != names:
        return None
    return _entry(record)


def _entry(record: dict[str, Any]) -> Entry:
    replicas = record["replicas"]
    return Entry(**{**record, "replicas": replicas if replicas is None else tuple(replicas)})


def _check(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
