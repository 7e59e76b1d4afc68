"""The contact sheet: images of a dataset, chosen by chance from their keys, with what is said of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset import Dataset
from pipelines.inspection.summary import Pick
from pipelines.inspection.thing import Thing, ancestors
from pipelines.shards import ShardError
from pipelines.sources.listing import printable

COLUMNS = 8
CELL = 112
LABEL = 240
"""Characters of a text beside a picture."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample as it is shown."""

    key: str
    label: str
    caption: str
    picture: bytes
    """The image file's bytes."""


def shown(thing: Thing, picks: Sequence[Pick]) -> list[Shown]:
    """The picks that have a picture, in their own dataset or in one that it was made from.

    Of the tars nothing else is read. `ShardError` where a picture is not what was written.
    """
    line = [thing.dataset, *(ancestors(thing) if thing.finished else [])]
    found = []
    for pick in picks:
        picture = _first(line, pick, "image")
        if picture is not None:
            text = _first(line, pick, "txt")
            caption = printable(text.decode(errors="replace"))[:LABEL] if text else ""
            label = printable(pick.label)[:LABEL]
            found.append(Shown(key=pick.key, label=label, caption=caption, picture=picture))
    return found


def _first(line: Sequence[Dataset], pick: Pick, column: str) -> bytes | None:
    """The column's bytes, from the nearest dataset of the line that has it for this key."""
    for dataset in line:
        if column in dataset.columns:
            index = dataset.index(pick.shard)
            row = pick.row if pick.row < len(index) and index.keys[pick.row] == pick.key else None
            if row is None and pick.key in index.keys:
                row = index.keys.index(pick.key)
            if row is not None and index.member(row, column):
                return dataset.read_member(pick.shard, row, column)
    return None


def draw(samples: Sequence[Shown]) -> bytes:
    """A PNG: rows of eight with their labels above them; equal samples give equal bytes."""
    from PIL import Image

    from pipelines import pictures

    rows = []
    for start in range(0, len(samples), COLUMNS):
        part = samples[start : start + COLUMNS]
        images: list[Any] = [_decoded(sample.picture) for sample in part]
        images += [None] * (COLUMNS - len(images))
        labels = [sample.caption if sample.label == sample.key else sample.label for sample in part]
        labels = [label or sample.key for label, sample in zip(labels, part, strict=True)]
        data = pictures.grid([images], column_labels=labels, cell=CELL, label_lines=2)
        rows.append(Image.open(io.BytesIO(data), formats=("PNG",)))
    gap = 10
    size = (max(row.width for row in rows), sum(row.height + gap for row in rows) - gap)
    sheet, top = Image.new("RGBA", size, (0, 0, 0, 0)), 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return pictures.png(sheet)


def thumbnail(picture: bytes, side: int = 160) -> bytes:
    """A PNG of at most `side` px, for the page; small images stay as they are."""
    from pipelines import pictures

    image = _decoded(picture)
    if image is None:
        return b""
    image.thumbnail((side, side))
    return pictures.png(image)


def _decoded(data: bytes) -> Any:
    """None for what Pillow cannot read: a picture less on the sheet."""
    from pipelines import pictures

    with contextlib.suppress(OSError, ValueError, ShardError):
        return pictures.decode(data)
    return None
