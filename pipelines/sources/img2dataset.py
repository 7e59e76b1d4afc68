"""What img2dataset downloaded: its shards, and what its tables say became of every address."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipelines.sources import said
from pipelines.sources.blobs import Blobs
from pipelines.sources.copies import Copies, StoredReader, copying
from pipelines.sources.layout import up_to
from pipelines.sources.magic import IMAGE_ENDINGS
from pipelines.sources.rowgroups import RowGroups, Unreadable
from pipelines.sources.samples import Telling, read_tar
from pipelines.sources.shard_rows import ShardRows, shard_rows
from pipelines.sources.source import Found, Part, Reader, Source
from pipelines.sources.tree import File, Tree, tree

_STATS = "_stats.json"
_JSON_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Img2datasetSource(Source):
    """The output folder of img2dataset, of --output_format webdataset, files or parquet.

    Every row of its tables ends as an image or as a reject: what could not be downloaded or resized with the
    error, and what it counted as done and lost. EXIF is left behind.
    """

    pictures: ClassVar[bool] = True
    kind: Literal["img2dataset"] = "img2dataset"
    path: Path = field(metadata={"execution": True})  # type: ignore[assignment]
    """The folder, here or in a bucket. Where it lies decides nothing."""
    text: str | None = None
    """Column of the text; caption if None."""
    label: str | None = None
    """Column of the label, of --save_additional_columns; label if None."""

    def roots(self) -> list[Part]:
        folders, files = tree(self.path).scan("")
        stamps = {file.name: file.stamp for file in files if file.stamp}
        if any(name.endswith(".tfrecord") for name in stamps):
            raise ValueError(f"{self.path} holds TFRecords; run img2dataset with --output_format webdataset.")
        stems = {name.removesuffix(_STATS) for name in stamps if name.endswith(_STATS)}
        stems |= {
            name.removesuffix(end) for name in stamps for end in (".tar", ".parquet") if name.endswith(end)
        }
        stems |= {name for name in folders if name.isdecimal()}
        if not stems:
            raise ValueError(
                f"{self.path} has no shards of img2dataset: NNNNN.tar, .parquet and _stats.json."
            )
        return [_part(stem, stamps, folder=stem in folders) for stem in sorted(stems)]

    def split(self, part: Part) -> list[Part]:
        # A shard that is a folder: what lies in it decides what it is.
        _, files = tree(self.path).scan(part.data["stem"])
        hasher = hashlib.sha256(part.stamp.encode())
        for file in files:
            hasher.update(f"{file.name} {file.stamp}\n".encode("utf-8", "surrogateescape"))
        return [replace(part, stamp=hasher.hexdigest()[:32], leaf=True)]

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        files, stem = tree(self.path), str(part.data["stem"])
        holds = {name: bool(part.data[name]) for name in ("tar", "table", "stats", "folder")}
        rows = shard_rows(
            files, stem, table=holds["table"], stats=holds["stats"], text=self.text, label=self.label
        )
        with copying(blobs, part, limit) as copies:
            if holds["tar"]:
                yield from _tar(files, rows, limit, copies)
            elif holds["folder"]:
                yield from _folder(files, rows, limit)
            elif holds["table"]:
                yield from _table(files, rows, limit, copies)
        yield from rows.faults
        yield from rows.lost()

    def reader(self, blobs: Blobs) -> Reader:
        return StoredReader(tree(self.path), blobs)


def _part(stem: str, stamps: Mapping[str, str], *, folder: bool) -> Part:
    names = {"tar": f"{stem}.tar", "table": f"{stem}.parquet", "stats": f"{stem}{_STATS}"}
    data = {role: name in stamps for role, name in names.items()}
    stamp = " ".join(stamps.get(name, "-") for name in names.values())
    return Part(
        name=stem,
        stamp=hashlib.sha256(stamp.encode()).hexdigest()[:32],
        data={"stem": stem, "folder": folder, **data},
        leaf=not folder or data["tar"],
    )


def _tar(files: Tree, rows: ShardRows, limit: int, copies: Copies) -> Iterator[Found]:
    tar = f"{rows.stem}.tar"
    for found in read_tar(files, tar, Telling(), limit, copies):
        key = found.name.removeprefix(f"{tar}/").partition(".")[0]
        image = not found.side and (found.data is not None or found.reject == "too_large")
        if image:
            yield rows.judged(key, found, found.facts)
        elif not (key in rows.rows and (found.side == "facts" or found.reject == "missing")):
            # What is told of a row that is known is told by the row.
            yield found


def _folder(files: Tree, rows: ShardRows, limit: int) -> Iterator[Found]:
    _, found = files.scan(rows.stem)
    names = {file.name: file for file in found}
    for file in found:
        base, _, ending = file.name.rpartition("/")[2].partition(".")
        if f".{ending.lower()}" in IMAGE_ENDINGS:
            told = _beside(files, names.get(f"{rows.stem}/{base}.json"))
            yield rows.judged(base, _file(files, file, limit), told)
        elif ending not in ("txt", "json") or base not in rows.rows:
            yield Found(name=file.name, side="file")


def _file(files: Tree, file: File, limit: int) -> Found:
    try:
        if not file.stamp:
            raise OSError("not a regular file")
        with files.open(file.name) as opened:
            return Found(name=file.name, where=file.name, data=up_to(opened, limit + 1))
    except OSError:
        return Found(name=file.name, reject="unreadable")


def _beside(files: Tree, file: File | None) -> dict[str, Any]:
    """What an image's .json says."""
    if file is None or not file.stamp:
        return {}
    with files.open(file.name) as opened:
        return said.parsed(up_to(opened, _JSON_BYTES)) or {}


def _table(files: Tree, rows: ShardRows, limit: int, copies: Copies) -> Iterator[Found]:
    """Images that stand in the table itself."""
    name = f"{rows.stem}.parquet"
    try:
        with files.open(name) as file:
            groups = RowGroups(file)
            column = next((one for one, kind in groups.columns.items() if kind == "bytes"), None)
            number = 0
            for group in range(len(groups.sizes())) if column else ():
                if groups.swells(group, str(column)):
                    raise Unreadable("an image's column swells")
                for row in groups.rows(group, ["key", str(column)]):
                    data, key, number = row[str(column)], str(row["key"]), number + 1
                    if data is None:
                        continue
                    found = Found(name=f"{name}/{number - 1}")
                    if len(data) > limit:
                        yield rows.judged(key, replace(found, reject="too_large"), {})
                    else:
                        yield rows.judged(key, replace(found, where=copies.add(data), data=data), {})
    except (OSError, Unreadable):
        # The rows that were not come to are told of as lost.
        return
