"""A look at a folder or zip archive of images: what is there, what is said of it, and what is broken."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.sources import FolderSource, ZipSource
from pipelines.sources.listing import Entry
from pipelines.sources.untrusted import Call, Task, in_child, opened

BATCH = 200
"""Images that one disposable process looks at."""
SMALL = 32
"""JPEGs are decoded at a fraction of their size, down to this side: enough to find what is broken."""


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
    """Images that were decoded: all, or as many as the time allowed, drawn at random."""
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
    source = FolderSource(path=path) if path.is_dir() else ZipSource(path=path)
    listing = source.listing()
    if not listing.entries:
        raise ValueError(f"{path} has no image in it ({listing.ignored} other files).")
    entries = list(listing.entries)
    broken = [(e.name, e.reject) for e in entries if e.reject]
    whole = [e for e in entries if not e.reject]
    random.Random(0).shuffle(whole)
    task = _task(source)
    looks: list[tuple[Entry, Any]] = []
    until = time.monotonic() + seconds
    while whole and time.monotonic() < until:
        batch, whole = whole[:BATCH], whole[BATCH:]
        looks += zip(batch, in_child(measure, task, [(e.where, e.digest) for e in batch]), strict=True)
    good = [look for _, look in looks if "reject" not in look]
    facts = Counter(key for e in entries for key in e.facts)
    return Survey(
        source=source,
        images=len(entries),
        ignored=listing.ignored,
        texts=facts.pop("text", 0),
        labels=Counter(str(e.facts["label"]) for e in entries if e.facts.get("label") is not None),
        splits=Counter(e.split for e in entries if e.split),
        metadata=tuple(sorted(set(facts) - {"label", "file_name"})),
        looked=len(looks),
        kinds=Counter(look["kind"] for look in good),
        sides=tuple((look["width"], look["height"]) for look in good),
        broken=tuple(sorted([*broken, *((e.name, look["reject"]) for e, look in looks if "reject" in look)])),
    )


def _task(source: FolderSource | ZipSource) -> Task:
    """The limits that `ingest` has by default."""
    from pipelines.stages.ingest import Ingest

    stage = Ingest(source=source)
    return Task(
        source=source, background=stage.background, max_bytes=stage.max_bytes, max_pixels=stage.max_pixels
    )


def measure(call: Call) -> Iterator[dict[str, Any]]:
    """For each input {"kind", "width", "height"}, or {"reject"}; runs in a disposable child."""
    from pipelines.sources.decode import Reject, decode

    task, items = opened(call)
    reader = task.source.reader()
    for where, _ in items:
        try:
            data = reader.read(where, task.max_bytes)
            picture = decode(
                data,
                background=task.background,
                max_bytes=task.max_bytes,
                max_pixels=task.max_pixels,
                smallest=SMALL,
            )
        except OSError:
            yield {"reject": "unreadable"}
        except Reject as reject:
            yield {"reject": str(reject)}
        else:
            yield {"kind": picture.kind, "width": picture.width, "height": picture.height}
