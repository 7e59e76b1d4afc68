"""The images that classifiers learn from and are judged on, as arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipelines.dataset import Dataset

MEMORY_SHARE = 0.3
"""Of the free memory, that all workers together may fill with decoded images."""
REAL = "real"
"""`source` of a view's real rows."""
Place = tuple[str, int]
"""Shard name and row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The labelled rows of a split, in shard and key order, before any image is decoded."""

    places: list[Place]
    labels: np.ndarray
    """int64 [n]."""
    weights: np.ndarray
    """float64 [n]: what each counts in training, 1 for a real image."""
    generated: np.ndarray
    """bool [n]."""

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, classes: int, *, generated: bool) -> list[int]:
        """Images of each class."""
        return np.bincount(self.labels[self.generated == generated], minlength=classes).tolist()


def labelled(dataset: Dataset, split: str, *, generated: bool = False) -> Rows:
    """Rows that have an image and a class. A view says itself which of its rows are generated.

    Args:
        generated: what the rows of any other dataset are.
    """
    view = "view" in dataset.manifest
    places: list[Place] = []
    labels, weights, made = [], [], []
    for shard in dataset.shards:
        if shard.split != split:
            continue
        index = dataset.index(shard.name)
        for n, meta in enumerate(index.meta):
            if index.reasons[n] is None and index.member(n, "image") and index.member(n, "cls"):
                places.append((shard.name, n))
                labels.append(int(dataset.read_member(shard.name, n, "cls")))
                weights.append(float(meta["weight"]) if view else 1.0)
                made.append(meta["source"] != REAL if view else generated)
    return Rows(
        places=places,
        labels=np.array(labels, np.int64),
        weights=np.array(weights, np.float64),
        generated=np.array(made, bool),
    )


class Pixels(Protocol):
    """Images by number."""

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """uint8 [len(numbers), size, size, 3]."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Images with their classes."""

    images: Pixels
    labels: np.ndarray
    """int64 [n]."""
    weights: np.ndarray
    """float64 [n]."""

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, numbers: np.ndarray, factors: np.ndarray | float = 1.0) -> Examples:
        """Some of them, their weights times `factors`."""
        return Examples(
            images=_Some(self.images, numbers),
            labels=self.labels[numbers],
            weights=self.weights[numbers] * factors,
        )


@dataclass(frozen=True, eq=False)
class _Some:
    images: Pixels
    chosen: np.ndarray

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        return self.images[self.chosen[numbers]]


def decoded(dataset: Dataset, rows: Rows, *, size: int) -> Examples:
    """Images that are decoded when they are first asked for, and kept if all fit."""
    from pipelines.training.tasks.decoded import Decoded
    from pipelines.training.tasks.rows import memory_budget

    def decode(number: int) -> np.ndarray:
        return square(dataset.read_member(*rows.places[number], "image"), size)

    # A worker of a pool has a CPU at least, so there are no more on a machine.
    budget = memory_budget(share=MEMORY_SHARE, workers=os.cpu_count() or 1)
    images = Decoded(decode, len(rows), dtype=np.uint8, budget=budget)
    return Examples(images=images, labels=rows.labels, weights=rows.weights)


def square(data: bytes, size: int) -> np.ndarray:
    """An encoded image as uint8 [size, size, 3]: its middle square, resized where it is not of that side."""
    from PIL import Image

    from pipelines import pictures

    image = pictures.decode(data)
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image)
