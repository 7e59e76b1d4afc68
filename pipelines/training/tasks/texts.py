"""Captions' embeddings as an embed stage stored them, kept in memory while there is room."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.arrays import from_npy
from pipelines.dataset import Dataset
from pipelines.embedders.embedding import TextEmbedding
from pipelines.training.tasks.rows import Rows, memory_budget

MEMORY_SHARE = 0.2


class Texts:
    """Raises ValueError if the dataset does not say which encoder made it."""

    def __init__(self, dataset: Dataset, *, workers: int = 1) -> None:
        record = dataset.manifest.get("statistics", {}).get("text")
        if not record:
            raise ValueError(
                f"{dataset.storage.url} has no text embeddings: give `text` a finished embed stage."
            )
        self.record: dict[str, Any] = record
        self.width = int(record["width"])
        self.template: str | None = record.get("template")
        self._budget = memory_budget(share=MEMORY_SHARE, workers=workers)
        self._kept: dict[str, TextEmbedding] = {}
        self._choices: dict[tuple[str, int], list[tuple[str, float]]] = {}

    def choose(self, rows: Rows, number: int, u: float) -> TextEmbedding | None:
        """The caption of a row that `u` in (0, 1) falls on, by weight; None if the row has none."""
        choices = self.choices(rows, number)
        return self.read(rows, number, pick(choices, u)) if choices else None

    def choices(self, rows: Rows, number: int) -> list[tuple[str, float]]:
        """Digest and weight of each of the row's captions."""
        where = rows.entries[number]
        if where not in self._choices:
            found: list[tuple[str, float]] = []
            if rows.has(number, "text", "text.json"):
                listed = json.loads(rows.read(number, "text", "text.json"))
                found = [(c["digest"], float(c["weight"])) for c in listed]
            self._choices[where] = found
        return self._choices[where]

    def read(self, rows: Rows, number: int, digest: str) -> TextEmbedding:
        if digest not in self._kept:
            states = from_npy(rows.read_shared(number, "text", f"{digest}.text.npy"))
            pooled = from_npy(rows.read_shared(number, "text", f"{digest}.pooled.npy"))
            if pooled.shape != (self.width,):
                raise ValueError(
                    f"The pooled vectors have {len(pooled)} channels and the token states {self.width}; "
                    "the network needs an encoder whose two widths are equal."
                )
            embedding = TextEmbedding(states, pooled)
            self._budget -= states.nbytes + pooled.nbytes
            if self._budget < 0:
                return embedding
            self._kept[digest] = embedding
        return self._kept[digest]


def pick(choices: Sequence[tuple[str, float]], u: float) -> str:
    """The choice that `u` in (0, 1) falls on when they are laid side by side by weight."""
    edges = np.cumsum([weight for _, weight in choices])
    return choices[min(int(np.searchsorted(edges, u * edges[-1], side="right")), len(choices) - 1)][0]
