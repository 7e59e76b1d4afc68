"""A look at a folder or zip archive of images: what is there, what is said of it, and what is broken."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.storage import Storage, cache_folder
from pipelines.sources import FolderSource, ZipSource
from pipelines.sources.blobs import Blobs
from pipelines.sources.listing import Entry
from pipelines.sources.source import Reader

BATCH = 200
"""Images that one disposable process looks at."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a source holds."""

    source: FolderSource | ZipSource
    images: int
    """Inputs: image files, and what metadata names."""
    ignored: int
    """Files that are no images."""
    texts: int
    """Images with a caption, from metadata or a .txt beside them."""
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    """Images whose split the source states."""
    metadata: tuple[str, ...] = ()
    """What else metadata says of images."""
    looked: int = 0
    """Images that were decoded: all whose header is sound, or as many as time allowed, drawn at random."""
    kinds: Counter[str] = field(default_factory=Counter)
    sides: tuple[tuple[int, int], ...] = ()
    """(width, height) of the images that were decoded."""
    broken: tuple[tuple[str, str], ...] = ()
    """(name, reason code) of those that `ingest` will reject."""

    def short_side(self, share: float) -> int:
        """The length below which this share of the images' shorter sides lies, in pixels."""
        sides = sorted(min(side) for side in self.sides)
        return sides[min(len(sides) - 1, int(share * len(sides)))] if sides else 0

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.source.path),
            "images": self.images,
            "ignored": self.ignored,
            "texts": self.texts,
            "labels": dict(self.labels.most_common()),
            "splits": dict(self.splits),
            "metadata": list(self.metadata),
            "looked": self.looked,
            "kinds": dict(self.kinds),
            "short_side": {q: self.short_side(q / 100) for q in (0, 50, 100)} if self.sides else {},
            "broken": [{"name": name, "reason": reason} for name, reason in self.broken],
        }


def survey(path: Path, *, seconds: float = 20.0) -> Survey:
    """Lists everything and decodes as many images as `seconds` allow, in random order.

    Raises `ValueError` if there is no such folder or archive, or no image in it.
    """
    if not path.exists():
        raise ValueError(f"there is no {path}.")
    from pipelines.sources.survey import listing
    from pipelines.sources.untrusted import Task, looked_at
    from pipelines.stages.ingest import Ingest

    source = FolderSource(path=path) if path.is_dir() else ZipSource(path=path)
    found = listing(source)
    if not found.entries:
        raise ValueError(f"{path} has no image in it ({found.ignored} other files).")
    entries = list(found.entries)
    broken = [(e.name, reason) for e in entries if (reason := e.reject or e.fault)]
    whole = [e for e in entries if not (e.reject or e.fault)]
    random.Random(0).shuffle(whole)
    stage = Ingest(source=source)
    task = Task(background=stage.background, max_bytes=stage.max_bytes, max_pixels=stage.max_pixels)
    reader = source.reader(Blobs(Storage.at(cache_folder())))
    looks: list[tuple[Entry, str | None]] = []
    until = time.monotonic() + seconds
    while whole and time.monotonic() < until:
        batch, whole = whole[:BATCH], whole[BATCH:]
        # What cannot be read is as good as empty.
        data = (_read(reader, entry, stage.max_bytes) for entry in batch)
        for entry, look in zip(batch, looked_at(task, data), strict=True):
            looks.append((entry, look.get("reject")))
    good = [entry for entry, reject in looks if reject is None]
    facts = Counter(key for e in entries for key in e.facts)
    return Survey(
        source=source,
        images=len(entries),
        ignored=found.ignored,
        texts=facts.pop("text", 0),
        labels=Counter(str(e.facts["label"]) for e in entries if e.facts.get("label") is not None),
        splits=Counter(e.split for e in entries if e.split),
        metadata=tuple(sorted(set(facts) - {"label", "file_name"})),
        looked=len(looks),
        kinds=Counter(entry.kind for entry in good if entry.kind),
        sides=tuple((entry.width, entry.height) for entry in good if entry.width and entry.height),
        broken=tuple(sorted([*broken, *((entry.name, reject) for entry, reject in looks if reject)])),
    )


def _read(reader: Reader, entry: Entry, limit: int) -> bytes:
    try:
        return reader.read(entry.where, limit)
    except OSError:
        return b""
