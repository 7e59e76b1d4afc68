"""The first images of a generated dataset, by index: none of them picked by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.storage import Storage

if TYPE_CHECKING:
    from pipelines.dataset import Dataset

COLUMNS = 8
ROWS = 3


def sheets(place: Storage, cache: Storage, name: str) -> list[bytes]:
    """Up to three rows of eight images with their prompts or classes, as one PNG each.

    Args:
        place: the dataset's folder.
        cache: where the pictures are kept, under names that start with `name`, so that they are drawn once.
    """
    kept = cache.list(f"{name}-")
    if kept:
        return [cache.read(file) for file in kept]
    from pipelines import pictures
    from pipelines.dataset import Dataset

    dataset = Dataset.open(place)
    rows = [
        (index.meta[n].get("index", n), shard.name, n)
        for shard in dataset.shards
        for index in [dataset.index(shard.name)]
        for n in range(len(index.keys))
        if index.reasons[n] is None and index.member(n, "image")
    ]
    chosen = sorted(rows)[: COLUMNS * ROWS]
    found = []
    for start in range(0, len(chosen), COLUMNS):
        part = [(shard, n) for _, shard, n in chosen[start : start + COLUMNS]]
        images = [pictures.decode(dataset.read_member(shard, n, "image")) for shard, n in part]
        labels = [_label(dataset, shard, n) for shard, n in part]
        found.append(pictures.grid([images], column_labels=labels if any(labels) else ()))
        cache.replace(f"{name}-{start // COLUMNS}.png", found[-1])
    return found


def _label(dataset: Dataset, shard: str, n: int) -> str:
    """The prompt, else the class."""
    index = dataset.index(shard)
    if index.member(n, "txt"):
        return dataset.read_member(shard, n, "txt").decode()
    return dataset.classes[int(dataset.read_member(shard, n, "cls"))] if index.member(n, "cls") else ""
