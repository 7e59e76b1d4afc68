"""A folder of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pipelines.places import at_hand
from pipelines.sources import zip as archive
from pipelines.sources.layout import File, Files, Labels, hash_stream, survey
from pipelines.sources.listing import Listing, Reader


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder, with or without metadata.csv or .jsonl, class folders, and a .txt beside each image."""

    pictures: ClassVar[bool] = True
    """Whether near-duplicates can be told by a perceptual hash."""
    kind: Literal["folder"] = "folder"
    path: Path = field(metadata={"execution": True})
    """The folder, or a zip archive of it. Where it lies decides nothing."""
    labels: Labels = "folders"
    """Whether images are labelled by the name of the folder they lie in, where no metadata says more."""

    def listing(self) -> Listing:
        """`ValueError` if there is no such folder, or its metadata cannot be read."""
        return survey(self._files(), self.labels)

    def digest(self) -> str:
        """Of what `listing` gives."""
        return self.listing().digest

    def reader(self) -> Reader:
        return self._files()

    def _files(self) -> FolderFiles | archive.ZipFiles:
        path = at_hand(self.path)
        if path.is_file():
            return archive.ZipFiles(path)
        if not path.is_dir():
            raise ValueError(f"{self.path} is not a folder.")
        return FolderFiles(path.resolve())


class FolderFiles(Files):
    """The files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def list(self) -> list[File]:
        return [
            File(name, name, (state.st_size, state.st_mtime_ns, state.st_ino))
            for name, state in _walk(str(self.path), "")
        ]

    def read(self, where: str | int, limit: int) -> bytes:
        with self._open(where) as file:
            return file.read(limit + 1)

    def hash(self, where: str | int) -> tuple[str, bytes]:
        with self._open(where) as file:
            return hash_stream(file)

    def digest(self, where: str | int, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def _open(self, where: str | int):
        return open(os.path.join(self.path, str(where)), "rb", buffering=0)


def _walk(top: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(os.path.join(top, prefix)) as listed:
            entries = sorted(listed, key=lambda e: e.name)
    except PermissionError:
        raise ValueError(f"The folder {os.path.join(top, prefix)} may not be read.") from None
    for entry in entries:
        name = f"{prefix}/{entry.name}" if prefix else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(top, name)
        elif entry.is_file():
            # Links to folders and dead links, pipes and devices are not followed.
            yield name, entry.stat()
