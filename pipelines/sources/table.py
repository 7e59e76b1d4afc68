"""Tables of images: Parquet, CSV and JSON lines, with the bytes in them or the paths of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pipelines.sources.blobs import Blobs
from pipelines.sources.named import folder, named, splits
from pipelines.sources.source import Found, Part, Reader, Source
from pipelines.sources.tables import ENDINGS, Tables
from pipelines.sources.tree import tree


@dataclass(frozen=True, kw_only=True)
class TableSource(Source):
    """Rows of images in Parquet, CSV, TSV or JSON lines; every other column is a fact, boxes included.

    An image stands in its row, as the bytes of a file or as HuggingFace's {bytes, path}, or the row names a
    file below one folder: what leads out of that is never opened.

    A row group, or about 8 MB of lines, is a task.
    """

    pictures: ClassVar[bool] = True
    kind: Literal["table"] = "table"
    path: Path = field(metadata={"execution": True})  # type: ignore[assignment]
    """A table, a folder of tables, or a pattern, here or in a bucket. Where they lie decides nothing."""
    images: Path | None = field(default=None, metadata={"execution": True})
    """The folder that paths are below, as s3://bucket/photos; each table's own if None."""
    image: str | None = None
    """Column of the image; found by its type and name (image, jpg, file_name, path, ...) if None."""
    text: str | None = None
    """Column of the text, or of a list of them; text, caption or prompt if None."""
    label: str | None = None
    """Column of the label; label, class or category if None."""
    key: str | None = None
    """Column of the sample's key, taken where it is legal; key if None."""
    splits: str | None = None
    """Column that says train, validation or test; split if None. Else names of files may: train-00000.csv."""

    def roots(self) -> list[Part]:
        _, files = named(self.path, ENDINGS)
        return self._tables().roots(files, splits([file.name for file in files]))

    def split(self, part: Part) -> list[Part]:
        return self._tables().split(part)

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        return self._tables().read(part, limit, known, blobs)

    def reader(self, blobs: Blobs) -> Reader:
        return self._tables().reader(blobs)

    def _tables(self) -> Tables:
        home = folder(self.path, ENDINGS)
        wanted = {
            "image": self.image,
            "text": self.text,
            "label": self.label,
            "key": self.key,
            "split": self.splits,
        }
        return Tables(files=tree(home), home=home, images=self.images, wanted=wanted)
