"""Tars as `webdataset` and img2dataset write them: the members of one name are one sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pipelines.sources import inflated
from pipelines.sources.blobs import Blobs
from pipelines.sources.copies import StoredReader, copying
from pipelines.sources.listing import SPLITS
from pipelines.sources.named import home, named, splits
from pipelines.sources.samples import Telling, read_tar
from pipelines.sources.source import Found, Part, Reader, Source

ENDINGS = (".tar", *inflated.ENDINGS)


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource(Source):
    """Tars of samples: an image, and `.txt`, `.cls` or `.json` of the same name beside it, in any order.

    A tar is read from its start to its end and never extracted: regular files only, and of these only the
    images and what the three endings say. Other members are counted; refused ones are rejects.
    """

    pictures: ClassVar[bool] = True
    kind: Literal["webdataset"] = "webdataset"
    path: Path = field(metadata={"execution": True})  # type: ignore[assignment]
    """A tar, a folder of tars, or a pattern: `shards/{00000..00127}.tar`, `s3://bucket/**/*.tar`. Tars may be
    packed as .gz or .zst. Where they lie decides nothing."""
    image: str | None = None
    """Ending of the member that is the image (`jpg`, `input.png`); any image's if None."""
    text: str | None = None
    """Field of the .json that is the text, where there is no .txt; `text`, else `caption`, if None."""
    label: str | None = None
    """Field of the .json that is the label, `label` if None; where there is none, .cls says it."""
    labels: Literal["member_folders", "none"] = "none"
    """Whether an image is labelled by the folder that it lies in within its tar."""

    def roots(self) -> list[Part]:
        home(self.path, ENDINGS)
        return [Part(name="/", stamp="", leaf=False)]

    def split(self, part: Part) -> list[Part]:
        _, files = named(self.path, ENDINGS)
        stated = splits([file.name for file in files])
        return [
            Part(name=file.name, stamp=file.stamp, data={"file": file.name, "split": stated.get(file.name)})
            for file in files
        ]

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        files = home(self.path, ENDINGS)
        telling = Telling(image=self.image, text=self.text, label=self.label)
        with copying(blobs, part, limit) as copies:
            for found in read_tar(files, part.data["file"], telling, limit, copies):
                yield self._said(found, part.data["file"], part.data["split"])

    def reader(self, blobs: Blobs) -> Reader:
        return StoredReader(home(self.path, ENDINGS), blobs)

    def _said(self, found: Found, tar: str, stated: str | None) -> Found:
        facts = dict(found.facts)
        split = SPLITS.get(str(facts.pop("split", "")).lower(), stated)
        folders = found.name.removeprefix(f"{tar}/").split("/")[:-1]
        if self.labels == "member_folders" and folders and "label" not in facts and not found.side:
            facts["label"] = folders[-1]
        return Found(**{**found.__dict__, "facts": facts, "split": split})
