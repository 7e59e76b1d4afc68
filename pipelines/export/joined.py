"""The samples of an export: an image with its label and text, and columns that other datasets have of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.dataset import Dataset
from pipelines.shards import IMAGE, ShardInfo
from pipelines.stage import KEEP
from pipelines.view import View

OWN = {*IMAGE, "image", "json", "txt", "cls", "key", "text", "label", "weight", "source"}
"""Names that an exported sample has already."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """One sample."""

    key: str
    suffix: str
    """jpg, png or webp."""
    image: bytes
    text: str | None
    label: str | None
    class_id: int | None
    facts: Mapping[str, Any]
    columns: Mapping[str, bytes]


@dataclass
class Line:
    """Datasets of the same images, read side by side, shard by shard."""

    dataset: Dataset
    captions: Dataset | None = None
    keep: Dataset | None = None
    columns: Sequence[tuple[Dataset, str]] = ()
    left_out: Counter[str] = field(default_factory=Counter)

    def check(self, form: str) -> None:
        """`ValueError` for columns that are not there, or that have no place in the form."""
        taken = Counter(column for _, column in self.columns)
        for other, column in self.columns:
            if column not in other.columns:
                raise ValueError(
                    f"{other.storage.url} has no column {column}: it has {', '.join(other.columns)}."
                )
            if column in OWN or taken[column] > 1:
                raise ValueError(f"Two columns of an exported sample would be called {column}.")
        if self.columns and form == "folder":
            raise ValueError(
                "A folder holds images and what is said of them: --columns goes with --form webdataset or "
                "parquet."
            )
        if self.keep is not None and KEEP not in self.keep.columns:
            raise ValueError(
                f"{self.keep.storage.url} has no column {KEEP}: give what filter or deduplicate made."
            )
        for other in (self.captions, self.keep, *(other for other, _ in self.columns)):
            if other is not None and not self._of_one_line(other):
                raise ValueError(
                    f"{other.storage.url} has no shard of {self.dataset.storage.url}: not of one line."
                )

    def samples(self, info: ShardInfo) -> Iterator[Joined]:
        """Of one shard, in key order; what is left out is counted."""
        dataset = _one(self.dataset, info.name)
        index, others = dataset.index(info.name), _Others(dataset)
        for n, key in enumerate(index.keys):
            suffix = index.suffix(n, "image")
            if index.reasons[n] or suffix is None:
                continue
            if self.keep is not None and others.has(self.keep, info.name, n, KEEP) is False:
                self.left_out["not kept"] += 1
                continue
            columns = {column: others.read(other, info.name, n, column) for other, column in self.columns}
            lacking = next((column for column, data in columns.items() if data is None), None)
            if lacking is not None:
                self.left_out[f"without {lacking}"] += 1
                continue
            said = dataset.read_member(info.name, n, "json") if index.member(n, "json") else b"{}"
            facts = json.loads(said)
            if isinstance(dataset, View):
                facts |= {name: index.meta[n][name] for name in ("source", "weight")}
            class_id = int(dataset.read_member(info.name, n, "cls")) if index.member(n, "cls") else None
            label = facts.get("label")
            if class_id is not None and class_id < len(dataset.classes):
                label = dataset.classes[class_id]
            own = dataset.read_member(info.name, n, "txt") if index.member(n, "txt") else None
            if own is None and self.captions is not None:
                own = others.read(self.captions, info.name, n, "txt")
            yield Joined(
                key=key,
                suffix=suffix,
                image=dataset.read_member(info.name, n, "image"),
                text=own.decode() if own is not None else facts.get("text") or facts.get("prompt"),
                label=None if label is None else str(label),
                class_id=class_id,
                facts=facts,
                columns={name: data for name, data in columns.items() if data is not None},
            )

    def _of_one_line(self, other: Dataset) -> bool:
        """Whether it has a shard of the images, or of what the view of images points into."""
        names = {info.name for info in other.shards}
        own = [*self.dataset.sources.values()] if isinstance(self.dataset, View) else [self.dataset]
        return any(info.name in names for dataset in own for info in dataset.shards)


class _Others:
    """Members that other datasets have of the rows of one shard."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._opened: dict[tuple[int, str], Dataset | None] = {}

    def has(self, other: Dataset, shard: str, n: int, column: str) -> bool | None:
        """None for a row that is none of the other's: a generated image beside captions of real ones."""
        found = self._place(other, self._dataset, shard, n)
        return found and found[0].index(found[1]).member(found[2], column) is not None

    def read(self, other: Dataset, shard: str, n: int, column: str) -> bytes | None:
        found = self._place(other, self._dataset, shard, n)
        if not found or found[0].index(found[1]).member(found[2], column) is None:
            return None
        return found[0].read_member(found[1], found[2], column)

    def _place(self, other: Dataset, dataset: Dataset, shard: str, n: int) -> tuple[Dataset, str, int] | None:
        if isinstance(dataset, View):
            row = dataset.rows(shard)[n]
            return self._place(other, dataset.sources[row.source], row.shard, row.row)
        place = (id(other), shard)
        if place not in self._opened:
            there = any(info.name == shard for info in other.shards)
            theirs = _one(other, shard) if there else None
            same = theirs is not None and theirs.index(shard).keys == dataset.index(shard).keys
            self._opened[place] = theirs if same else None
        theirs = self._opened[place]
        return None if theirs is None else (theirs, shard, n)


def _one(dataset: Dataset, shard: str) -> Dataset:
    """The dataset with one shard, so that no index is kept longer than it is needed."""
    if isinstance(dataset, View):
        return dataset
    return Dataset(dataset.storage, {**dataset.manifest, "shards": [dataset.info(shard).__dict__]})
