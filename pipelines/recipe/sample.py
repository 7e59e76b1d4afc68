"""A source read in part: what was drawn of it, as much of that as a time and a memory allow."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from pipelines.recipe.drawing import CHUNK, ROWS, Drawn
from pipelines.recipe.glimpse import is_image
from pipelines.sources.blobs import Blob, Blobs, BlobWriter
from pipelines.sources.source import Found, Part, Reader, Source
from pipelines.sources.tree import tree

EACH = 1000
"""Images that are read of one of many parts, and ..."""
EACH_BYTES = 32 << 20
"""... their bytes, at least so many where they are many."""
COPIED = 256 << 20
"""Bytes of images that are held, of sources that cannot be read at random."""
IMAGES = 5000
"""Of a part of IDX files, and of one of which nothing is known."""


class Held(Blobs):
    """Copies of images, in memory, for as long as a survey takes."""

    def __init__(self) -> None:
        self.size = 0
        self._data: dict[str, list[bytes]] = {}

    def writer(self, name: str) -> BlobWriter:
        return _Holder(self, name)

    def add(self, name: str, data: bytes) -> Blob:
        kept = self._data.setdefault(name, [])
        kept.append(data)
        self.size += len(data)
        return [name, len(kept) - 1, len(data)]

    def read(self, where: Blob, limit: int) -> bytes:
        name, number, _ = where
        return self._data[name][number][: limit + 1]


class _Holder(BlobWriter):
    def __init__(self, held: Held, name: str) -> None:
        self._held, self._name = held, name

    def __enter__(self) -> _Holder:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def add(self, data: bytes) -> Blob:
        return self._held.add(self._name, data)


@dataclass
class Tally:
    """What was read of each part, by its name; several threads add to it."""

    until: float
    held: Held = field(default_factory=Held)
    images: dict[str, int] = field(default_factory=dict)
    covered: dict[str, float] = field(default_factory=dict)
    """Share of the part that was read."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, kw_only=True)
class Sampled(Source):
    """What was drawn of a source, as a source."""

    pictures: ClassVar[bool] = True
    path: Path = field(metadata={"execution": True})
    source: Source = field(metadata={"execution": True})
    drawn: Drawn = field(metadata={"execution": True})
    tally: Tally = field(metadata={"execution": True})

    @property
    def labels(self) -> str:
        return getattr(self.source, "labels", "none")

    def roots(self) -> list[Part]:
        return [replace(part, leaf=True) for part in self.drawn.parts]

    def split(self, part: Part) -> list[Part]:
        raise AssertionError("all parts are leaves")

    def reader(self, blobs: Blobs) -> Reader:
        return self.source.reader(self.tally.held)

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        """Nothing once the time is over, but for metadata and the first images."""
        tally, count, images, size, end = self.tally, 0, 0, 0, 0
        told = self.drawn.weights[part.name] == 0 and "files" in part.data
        first = next((p.name for p in self.drawn.parts if self.drawn.weights[p.name]), "") == part.name
        if not told and not first and self._is_over():
            return
        ended = True
        for found in self.source.read(part, limit, known, tally.held):
            if found.side == "facts" and not self.drawn.all and self._is_passed_over(found.name):
                continue
            yield found
            count += 1
            images += not found.side
            size += len(found.data or b"")
            if isinstance(found.where, list):  # in a tar that is read where it lies: samples before this one
                end = found.where[1] * images // max(1, images - 1)
            over = self._is_over() and not (first and count < CHUNK)
            if not told and (over or self._is_enough(images, size)):
                ended = False
                break
        with tally.lock:
            tally.images[part.name] = images
            tally.covered[part.name] = 1.0 if ended else self._share(part, count, end or size)

    def _is_passed_over(self, name: str) -> bool:
        return bool(self.drawn.names) and name not in self.drawn.names

    def _is_over(self) -> bool:
        return time.monotonic() > self.tally.until or self.tally.held.size > COPIED

    def _is_enough(self, images: int, size: int) -> bool:
        """Of one of many parts: then others are worth more than the rest of it."""
        parts = len(self.drawn.parts)
        return parts > 8 and (images >= EACH or size > max(EACH_BYTES, COPIED // parts))

    def _share(self, part: Part, count: int, size: int) -> float:
        """Of a part that was left early: by its files, its rows, or its bytes."""
        data, weight = part.data, self.drawn.weights[part.name]
        if "files" in data:
            images = [is_image(name) for name, *_ in data["files"]]
            return sum(images[:count]) / sum(images) if any(images) else count / len(images)
        piece = data.get("piece", ())
        if piece:
            return min(1.0, count / (weight if len(piece) == 4 else ROWS))
        if "file" in data:  # what is packed has images, and little beside
            return min(1.0, size / weight)
        return min(1.0, count / self._rows(part))

    def _rows(self, part: Part) -> int:
        """Of a part that does not say how many it has."""
        if part.data.get("stats"):
            with tree(self.path).open(f"{part.data['stem']}_stats.json") as file:
                told = json.loads(file.read(1 << 20))
            return max(1, int(told.get("count") or 1))
        return IMAGES


def estimated(sampled: Sampled) -> tuple[int, bool]:
    """Images of the whole source, and whether they were counted and not reckoned."""
    drawn, tally = sampled.drawn, sampled.tally
    times = drawn.times
    seen = sum(tally.images[name] * times[name] for name in tally.images)
    if drawn.all and all(tally.covered.get(part.name) == 1.0 for part in drawn.parts):
        return sum(tally.images.values()), True
    read = sum(tally.covered[name] * drawn.weights[name] * times[name] for name in tally.covered)
    return (round(seen * drawn.total / read) if read else 0), False
