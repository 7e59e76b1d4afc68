"""Where an image of a container is found again: where it lies, or in a copy beside the survey."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

from pipelines.shards import canonical
from pipelines.sources.blobs import Blobs, BlobWriter
from pipelines.sources.layout import up_to
from pipelines.sources.source import Part, Reader, Where
from pipelines.sources.tree import Tree

_VERSION = 1
"""Of what the sources choose to copy; another one makes other files."""


class Copies:
    """The copies of one part's images, in a file that is begun with the first."""

    def __init__(self, blobs: Blobs, name: str, closing: contextlib.ExitStack) -> None:
        self._blobs, self._name, self._closing = blobs, name, closing
        self._writer: BlobWriter | None = None

    def add(self, data: bytes) -> Where:
        """What `StoredReader` finds these bytes by."""
        if self._writer is None:
            self._writer = self._closing.enter_context(self._blobs.writer(self._name))
        return {"blob": self._writer.add(data)}


@contextlib.contextmanager
def copying(blobs: Blobs, part: Part, limit: int) -> Iterator[Copies]:
    """The file appears when the block is left without an error; equal parts and limits make equal ones."""
    said = canonical([_VERSION, part.name, part.stamp, limit])
    with contextlib.ExitStack() as closing:
        yield Copies(blobs, f"{hashlib.sha256(said).hexdigest()[:40]}.blob", closing)


class StoredReader(Reader):
    """Reads a whole file by its name, a piece by [file, offset, size], and a copy by {"blob": [...]}."""

    def __init__(self, files: Tree, blobs: Blobs) -> None:
        self._files, self._blobs = files, blobs

    def read(self, where: Where, limit: int) -> bytes:
        if isinstance(where, dict):
            return self._blobs.read(where["blob"], limit)
        name, offset, size = (where, 0, None) if isinstance(where, str) else where
        with self._files.open(str(name)) as file:
            file.seek(int(offset))
            wanted = limit + 1 if size is None else min(int(size), limit + 1)
            data = up_to(file, wanted)
        if size is not None and len(data) < wanted:
            raise OSError(f"{name} ends {wanted - len(data)} bytes early.")
        return data


def unread(value: Any) -> str:
    """One line of why something could not be read, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in str(value))[:300]
