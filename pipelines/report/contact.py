"""The first images of a dataset that a model made, by index or key: none of them picked by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.storage import Storage

if TYPE_CHECKING:
    from pipelines.dataset import Dataset

COLUMNS = 8
ROWS = 3


MADE: dict[str, dict[str, str]] = {
    "generate": {"": "image"},
    "upscale": {"": "image"},
    "edit": {"given": "given", "edited": "image"},
    "detect": {"": "heat"},
}
"""Stage -> row label -> column, or how the column's name begins."""


def sheets(place: Storage, cache: Storage, name: str, *, kind: str) -> list[bytes]:
    """Up to three rows of eight images with their prompts or classes, as one PNG each; where a stage made
    several pictures of an image, they stand below each other.

    Args:
        place: the dataset's folder.
        kind: of the stage that made it.
        cache: where the pictures are kept, under names that start with `name`, so that they are drawn once.
    """
    kept = cache.list(f"{name}-")
    if kept:
        return [cache.read(file) for file in kept]
    from pipelines import pictures
    from pipelines.dataset import Dataset

    dataset = Dataset.open(place)
    of = {label: _column(dataset, column) for label, column in MADE[kind].items()}
    rows = [
        (index.meta[n].get("place", index.meta[n].get("index", n)), shard.name, n)
        for shard in dataset.shards
        for index in [dataset.index(shard.name)]
        for n in range(len(index.keys))
        if index.reasons[n] is None and all(index.member(n, column) for column in of.values())
    ]
    chosen = sorted(rows)[: COLUMNS * ROWS]
    found = []
    for start in range(0, len(chosen), COLUMNS):
        part = [(shard, n) for _, shard, n in chosen[start : start + COLUMNS]]
        images = [
            [pictures.decode(dataset.read_member(shard, n, column)) for shard, n in part]
            for column in of.values()
        ]
        labels = [_label(dataset, shard, n) for shard, n in part]
        found.append(
            pictures.grid(
                images,
                row_labels=[*of] if len(of) > 1 else (),
                column_labels=labels if any(labels) else (),
            )
        )
        cache.replace(f"{name}-{start // COLUMNS}.png", found[-1])
    return found


def _column(dataset: Dataset, name: str) -> str:
    """The column itself, or the one whose name goes on after a dot (`given.png`)."""
    return next((column for column in dataset.columns if column.startswith(f"{name}.")), name)


def _label(dataset: Dataset, shard: str, n: int) -> str:
    """What a stage calls it, else the prompt, else the class."""
    index = dataset.index(shard)
    if "title" in index.meta[n]:
        return str(index.meta[n]["title"])
    if index.member(n, "txt"):
        return dataset.read_member(shard, n, "txt").decode()
    return dataset.classes[int(dataset.read_member(shard, n, "cls"))] if index.member(n, "cls") else ""
