"""A folder of images, on this machine or in a bucket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pipelines.places import at_hand, remote
from pipelines.sources import layout
from pipelines.sources.blobs import Blobs
from pipelines.sources.layout import Labels
from pipelines.sources.source import Found, Part, Reader, Source, Where
from pipelines.sources.tree import Tree, tree
from pipelines.sources.zip import ZipSource


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """A folder, with or without metadata.csv or .jsonl, class folders, and a .txt beside each image."""

    pictures: ClassVar[bool] = True
    kind: Literal["folder"] = "folder"
    path: Path = field(metadata={"execution": True})
    """The folder, a path or an s3, gs or az URL, or a zip archive of it. Where it lies decides nothing."""
    labels: Labels = "folders"
    """Whether images are labelled by the name of the folder they lie in, where no metadata says more."""

    def roots(self) -> list[Part]:
        archive = self._archive()
        if archive:
            return archive.roots()
        tree(self.path)
        return [Part(name="/", stamp="", data={"folder": ""}, leaf=False)]

    def split(self, part: Part) -> list[Part]:
        archive = self._archive()
        return archive.split(part) if archive else layout.walk(tree(self.path), part.data["folder"])

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        archive = self._archive()
        if archive:
            return archive.read(part, limit, known, blobs)
        return layout.read(part, tree(self.path).open, limit, known)

    def reader(self, blobs: Blobs) -> Reader:
        archive = self._archive()
        return archive.reader(blobs) if archive else FileReader(tree(self.path))

    def _archive(self) -> ZipSource | None:
        name = str(self.path)
        if remote(self.path) is not None:
            return ZipSource(path=self.path, labels=self.labels) if name.lower().endswith(".zip") else None
        place = at_hand(self.path)
        return ZipSource(path=self.path, labels=self.labels) if place.is_file() else None


class FileReader(Reader):
    """Reads a tree's files by name."""

    def __init__(self, files: Tree) -> None:
        self._files = files

    def read(self, where: Where, limit: int) -> bytes:
        with self._files.open(str(where)) as file:
            return layout.up_to(file, limit + 1)

    def stamp(self, where: Where) -> str:
        return self._files.stamp(str(where))
