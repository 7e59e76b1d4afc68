"""Copies of images that cannot be read at random where they lie: in row groups, in compressed tars.

Each part's images lie end to end in one file beside the survey, written once, in the order of the part.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from cluster.storage import Storage

Blob = list
"""[name, offset, size]: an image in a blob, as JSON."""


class Blobs:
    """A folder of blob files."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def writer(self, name: str) -> BlobWriter:
        """For the images of one part; the file appears when the writer is left without an error."""
        return BlobWriter(self.storage, name)

    def read(self, where: Blob, limit: int) -> bytes:
        """At most `limit + 1` bytes of an image; `OSError` if the blob is gone or cut short."""
        name, offset, size = where
        try:
            return self.storage.read_range(str(name), int(offset), min(int(size), limit + 1))
        except EOFError as error:
            raise OSError(str(error)) from error


class BlobWriter:
    """Appends images to a file of its own."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name, self._size = storage, name, 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> BlobWriter:
        self._folder = tempfile.TemporaryDirectory(prefix="blob-")
        self._path = Path(self._folder.name) / "blob"
        self._file = self._path.open("wb")
        return self

    def add(self, data: bytes) -> Blob:
        """Where these bytes will lie."""
        assert self._file
        place = [self._name, self._size, len(data)]
        self._file.write(data)
        self._size += len(data)
        return place

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file
        self._file.close()
        try:
            if kind is None and self._size:
                # Named by its part's stamp, so that another driver's file of this name holds the same bytes.
                self._storage.put_if_absent(self._name, self._path)
        finally:
            self._folder.cleanup()
