"""A HuggingFace dataset as it lies on a disk or in a bucket: Parquet files, and a README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pipelines.sources.blobs import Blobs
from pipelines.sources.card import Card, card
from pipelines.sources.layout import up_to
from pipelines.sources.named import named
from pipelines.sources.source import Found, Part, Reader, Source
from pipelines.sources.tables import Tables
from pipelines.sources.tree import Tree, tree

_README_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class HuggingFaceSource(Source):
    """A dataset repository's folder: `hf download --repo-type dataset NAME --local-dir FOLDER` makes one.

    Nothing is fetched and nothing of it is run; images, names of labels and splits are read from the Parquet
    files and the README.
    """

    pictures: ClassVar[bool] = True
    kind: Literal["huggingface"] = "huggingface"
    path: Path = field(metadata={"execution": True})  # type: ignore[assignment]
    """The folder, here or in a bucket. Where it lies decides nothing."""
    config: str | None = None
    """Configuration; the default or only one if None."""
    image: str | None = None
    """Column of the image; the first of the feature Image if None."""
    text: str | None = None
    """Column of the text, or of a list of them; text, caption or prompt if None."""
    label: str | None = None
    """Column of the label; the first of the feature ClassLabel, label, class or category if None."""

    def roots(self) -> list[Part]:
        files = tree(self.path)
        chosen = self._card(files)
        try:
            _, tables = named(self.path, (".parquet",))
        except ValueError as error:
            raise ValueError(
                f"{error} A dataset of `save_to_disk` or of other files becomes Parquet by"
                " `datasets`' to_parquet."
            ) from None
        stated = chosen.files([file.name for file in tables])
        if not stated:
            raise ValueError(f"{self.path}: its README names no file that is there.")
        kept = [file for file in tables if file.name in stated]
        return self._tables(files, chosen).roots(
            kept, {name: split for name, split in stated.items() if split}
        )

    def split(self, part: Part) -> list[Part]:
        files = tree(self.path)
        return self._tables(files, self._card(files)).split(part)

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        return self._tables(tree(self.path), Card()).read(part, limit, known, blobs)

    def reader(self, blobs: Blobs) -> Reader:
        return self._tables(tree(self.path), Card()).reader(blobs)

    def _tables(self, files: Tree, chosen: Card) -> Tables:
        wanted = {"image": self.image, "text": self.text, "label": self.label}
        return Tables(files=files, home=self.path, wanted=wanted, classes=chosen.classes)

    def _card(self, files: Tree) -> Card:
        try:
            with files.open("README.md") as file:
                readme = up_to(file, _README_BYTES)
        except OSError:
            readme = None
        try:
            return card(readme, self.config)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
