"""Samples of several datasets under one row of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipelines.buckets import Size, ordered
from pipelines.stream import Line

if TYPE_CHECKING:
    from pipelines.embedders.embedding import TextEmbedding
    from pipelines.training.tasks.denoiser import Samples

Found = TypeVar("Found")


class Mixture:
    """The first one's samples, then the next one's, and so on: a batch may have some of each.

    Raises:
        ValueError: their latents have different shapes.
    """

    def __init__(self, parts: Sequence[Samples], weights: Sequence[float]) -> None:
        """`weights`: of each one's share in the training; none, and each counts by its samples."""
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.starts = np.concatenate([[0], np.cumsum([len(part.rows) for part in parts])]).astype(np.int64)
        sizes = {size for part in parts for size in part.by_size}
        shapes = {part.moments.shape for part in parts}
        if any(bool(part.by_size) != bool(sizes) for part in parts):
            raise ValueError("Some of the mixed latents have buckets and some have none: ingest them alike.")
        if not sizes and len(shapes) > 1:
            said = " and ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
            raise ValueError(f"The mixed latents have moments of {said}: encode all at one resolution.")
        self.by_size: dict[Size, np.ndarray] = {}
        """Numbers of each size's samples, if there are several."""
        for size in ordered(sizes):
            of = [
                start + part.by_size[size]
                for part, start in zip(parts, self.starts.tolist(), strict=False)
                if size in part.by_size
            ]
            self.by_size[size] = np.concatenate(of)

    small: None = None
    """Upscalers train on one dataset."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def lines(self) -> tuple[Line, ...]:
        """Whose turns there are. Of one size alone, all together are as if they had none."""
        several = len(self.by_size) > 1
        return tuple(
            Line(
                length=len(part.rows),
                groups=tuple(part.by_size.values()) if several else (),
                bounds=part.rows.starts,
                weight=self.weights[n] if self.weights else None,
            )
            for n, part in enumerate(self.parts)
        )

    def facts(self) -> list[dict[str, Any]]:
        """Of each dataset: its samples, its share of the training, and its classes that the first has not,
        whose samples are trained on without a class."""
        weights = self.weights or tuple(len(part.rows) for part in self.parts)
        return [
            {
                "samples": len(part.rows),
                "share": weight / sum(weights),
                "unknown_classes": list(part.unknown),
            }
            for part, weight in zip(self.parts, weights, strict=True)
        ]

    @property
    def remote(self) -> bool:
        return any(part.rows.remote for part in self.parts)

    def fetch(self, indices: np.ndarray) -> None:
        """Has what these samples take on this machine."""
        self._each(indices, indices, lambda part, _, i: part.rows.fetch(i.tolist()))

    def latents(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> Tensor:
        found = self._each(positions, indices, lambda part, p, i: part.latents(seed, p, i))
        (_, first), *_ = found
        latents = torch.empty(len(indices), *first.shape[1:], dtype=first.dtype)
        for places, part in found:
            latents[torch.from_numpy(places)] = part
        return latents

    def captions(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> list[TextEmbedding | None]:
        return self._listed(positions, indices, lambda part, p, i: part.captions(seed, p, i))

    def labels(self, indices: np.ndarray) -> list[int | None]:
        return self._listed(indices, indices, lambda part, _, i: part.labels(i))

    def _listed(
        self,
        positions: np.ndarray,
        indices: np.ndarray,
        of: Callable[[Samples, np.ndarray, np.ndarray], list[Found | None]],
    ) -> list[Found | None]:
        listed: list[Found | None] = [None] * len(indices)
        for places, found in self._each(positions, indices, of):
            for place, one in zip(places.tolist(), found, strict=True):
                listed[place] = one
        return listed

    def _each(
        self,
        positions: np.ndarray,
        indices: np.ndarray,
        of: Callable[[Samples, np.ndarray, np.ndarray], Found],
    ) -> list[tuple[np.ndarray, Found]]:
        """What `of` finds of each part's own numbers, and at which places of the batch they are."""
        whose = np.searchsorted(self.starts, indices, side="right") - 1
        found = []
        for n in np.unique(whose).tolist():
            places = np.flatnonzero(whose == n)
            found.append((places, of(self.parts[n], positions[places], indices[places] - self.starts[n])))
        return found
