"""What a source is: parts that tasks read one by one, and a reader that finds one image's bytes again.

A source lists and reads; it never decodes a picture, and no process reads it whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from pipelines.sources.blobs import Blobs
    from pipelines.sources.listing import Listing

Where = Any
"""JSON by which a source's reader finds an image: a name, a number, [file, offset, size]."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a source that one task reads: some of a folder's files, a tar, a row group."""

    name: str
    """Unique in the source and stable: what was read of it before is found under it."""
    stamp: str
    """Changes when the piece may have: sizes, times, names. An equal part is not read again."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """All that reading it takes, as JSON."""
    leaf: bool = True
    """False: a folder, whose parts a task of its own lists with `Source.split`."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One thing that was come upon in a part: an image, or what is said of one."""

    name: str
    """Of the image within the source, "/" between folders."""
    where: Where = None
    stamp: str = ""
    """Of this image alone; while it is equal its bytes are not read again. "": there is none."""
    data: bytes | None = None
    """Its bytes, the first `limit + 1` if they are more. None: known by its stamp, rejected, or no image."""
    digest: str = ""
    """sha256 hex, where it is not that of the bytes; see `Reader.digest`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is said of it: text, label, boxes, whatever; JSON types."""
    split: str | None = None
    """The split that the source states."""
    reject: str | None = None
    """Reason code, where it is known without the bytes."""
    key: str | None = None
    """A legal key that the source itself gives; else the name makes one."""
    side: str = ""
    """What it is, where it is no image. "facts": of the image of this very name, as a row of metadata is.
    "text": of the image of this name but for the ending, as a sidecar. "file": none, unless facts name it."""


class Reader(Protocol):
    """Reads images by `Found.where`, in the process that opened it."""

    def read(self, where: Where, limit: int) -> bytes:
        """At most `limit + 1` bytes, so that what is too large is known and not read.

        `OSError` if it cannot be read.
        """
        ...

    def stamp(self, where: Where) -> str:
        """What `Found.stamp` is now: while it is equal, so are the bytes. "": nobody can tell."""
        return ""

    def digest(self, where: Where, data: bytes) -> str:
        """What an input's digest is if `data` is the whole of it: sha256 hex."""
        return hashlib.sha256(data).hexdigest()


class Source(Protocol):
    """Where images come from: a frozen dataclass with a `kind`, one file each."""

    pictures: ClassVar[bool]
    """Whether near-duplicates can be told by a perceptual hash."""

    path: Path

    def roots(self) -> list[Part]:
        """Where listing starts; cheap. `ValueError` if the source is not there, with what to do."""
        ...

    def split(self, part: Part) -> list[Part]:
        """The parts of a part that is no leaf; called in a task of its own."""
        ...

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        """Everything in a leaf, in an order that is always the same.

        Args:
            part: from `roots` or `split`.
            limit: bytes of an image that are wanted; of a larger one, one byte more.
            known: name -> stamp of what an earlier read gave: as long as it is equal, no bytes are needed.
            blobs: where a source that cannot be read at random copies images.
        """
        ...

    def reader(self, blobs: Blobs) -> Reader: ...

    def listing(self) -> Listing:
        """All inputs at once, surveyed by this machine: for sources that are known to be small."""
        from pipelines.sources.survey import listing

        return listing(self)
