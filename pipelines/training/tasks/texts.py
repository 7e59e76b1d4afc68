"""Captions' embeddings as an embed stage stored them, or made anew, kept in memory while there is room."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.dataset import Dataset
from pipelines.embedders.embedding import TextEmbedding
from pipelines.embedders.storing import assembled
from pipelines.training.tasks.rows import Rows, memory_budget

if TYPE_CHECKING:
    from pipelines.embedders import TextEmbedder

MEMORY_SHARE = 0.2
CHOICES = 1 << 18
"""Rows whose captions' digests stay in memory."""


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
        self.pooled_width = int(record.get("pooled_width", self.width))
        self.template: str | None = record.get("template")
        self.online = record.get("store") == "online"
        """Whether the dataset holds the captions' words alone."""
        self._budget = memory_budget(share=MEMORY_SHARE, workers=workers)
        self._kept: dict[str, TextEmbedding] = {}
        self._words: dict[str, str] = {}
        self.choices = functools.lru_cache(maxsize=CHOICES)(self._listed)
        """Digest and weight of each of a row's captions."""

    @functools.cached_property
    def encoder(self) -> TextEmbedder:
        """The one that made the dataset. `ValueError` if another one is at hand."""
        from pipelines import embedders

        return embedders.load_text(self.record)

    def choose(self, rows: Rows, number: int, u: float) -> TextEmbedding | None:
        """The caption of a row that `u` in (0, 1) falls on, by weight; None if the row has none."""
        return self.chosen(rows, [number], [u])[0]

    def chosen(self, rows: Rows, numbers: Sequence[int], us: Sequence[float]) -> list[TextEmbedding | None]:
        """The same of several rows: those that are not there yet are embedded together."""
        digests = [
            pick(choices, u) if (choices := self.choices(rows, number)) else None
            for number, u in zip(numbers, us, strict=True)
        ]
        if self.online:
            new = {digest: self._words[digest] for digest in digests if digest and digest not in self._kept}
            made = self._encoded(new)
            return [None if digest is None else made.get(digest) or self._kept[digest] for digest in digests]
        return [
            None if digest is None else self.read(rows, number, digest)
            for number, digest in zip(numbers, digests, strict=True)
        ]

    def _listed(self, rows: Rows, number: int) -> list[tuple[str, float]]:
        if not rows.has(number, "text", "text.json"):
            return []
        listed = json.loads(rows.read(number, "text", "text.json"))
        if self.online:
            self._words.update({c["digest"]: c["text"] for c in listed})
        return [(c["digest"], float(c["weight"])) for c in listed]

    def read(self, rows: Rows, number: int, digest: str) -> TextEmbedding:
        """Of one of the row's captions."""
        if digest in self._kept:
            return self._kept[digest]
        if self.online:
            return self._encoded({digest: self._words[digest]})[digest]
        embedding = assembled(
            self.record, lambda suffix: rows.read_shared(number, "text", f"{digest}.{suffix}")
        )
        if embedding.pooled.shape != (self.pooled_width,) or embedding.states.shape[1:] != (self.width,):
            raise ValueError(
                f"The vectors of {digest} are not as wide as the dataset says: embed the captions again."
            )
        self._keep(digest, embedding)
        return embedding

    def _encoded(self, words: dict[str, str]) -> dict[str, TextEmbedding]:
        """`ValueError` for a caption of which the encoder makes no finite numbers."""
        if not words:
            return {}
        found = dict(zip(words, self.encoder.encode(list(words.values())), strict=True))
        for digest, embedding in found.items():
            if not (np.isfinite(embedding.states).all() and np.isfinite(embedding.pooled).all()):
                raise ValueError(
                    f"The text encoder overflows on {words[digest][:60]!r}: embed with `store: cached`, "
                    "which leaves such samples out, or with another `layer`."
                )
            self._keep(digest, embedding)
        return found

    def _keep(self, digest: str, embedding: TextEmbedding) -> None:
        size = embedding.states.nbytes + embedding.pooled.nbytes
        if size <= self._budget:
            self._budget -= size
            self._kept[digest] = embedding


def pick(choices: Sequence[tuple[str, float]], u: float) -> str:
    """The choice that `u` in (0, 1) falls on when they are laid side by side by weight."""
    edges = np.cumsum([weight for _, weight in choices])
    return choices[min(int(np.searchsorted(edges, u * edges[-1], side="right")), len(choices) - 1)][0]
