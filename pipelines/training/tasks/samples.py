"""Moments, captions and classes of a split's rows, as a denoiser's training sees them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffusion import randomness
from diffusion.latents import LatentStatistics, Moments
from pipelines.arrays import from_npy
from pipelines.buckets import Size
from pipelines.dataset import Dataset
from pipelines.embedders.embedding import TextEmbedding
from pipelines.encoding.columns import column, regrouped, statistics_at
from pipelines.encoding.pictures import Sizing
from pipelines.stage import KEEP
from pipelines.training.tasks.decoded import Decoded, Grouped, decoded
from pipelines.training.tasks.rows import Rows
from pipelines.training.tasks.small_images import SmallImages
from pipelines.training.tasks.texts import Texts

if TYPE_CHECKING:
    from pipelines.stages.train import Train

LABELS = 1 << 20
"""Rows whose class stays in memory."""


class Samples:
    """Rows of one split, as what a network sees of them."""

    def __init__(
        self,
        stage: Train,
        rows: Rows,
        *,
        texts: Texts | None,
        classes: Sequence[str],
        budget: int,
        statistics: LatentStatistics | None = None,
    ) -> None:
        """
        Args:
            classes: names that the network knows by number; the rows' own go by their names.
            statistics: that latents are whitened by; the dataset's own if None.
        """
        self.rows, self.texts = rows, texts
        own = rows.datasets["images"].classes if "images" in rows.datasets else []
        self._ids = [classes.index(name) if name in classes else None for name in own]
        self.unknown = [name for name, number in zip(own, self._ids, strict=True) if number is None]
        """Names of the rows' classes that are not among `classes`: such rows have none."""
        self.labelled = bool(classes) and bool(own)
        latents = rows.datasets["latents"]
        whole = latents.manifest["statistics"]
        said = statistics_at(whole, stage.resolution)
        self.statistics = statistics or LatentStatistics.from_json(said["latents"])
        self.factor = said["resolution"] // said["shape"][-1]
        """Pixels a latent."""
        self.by_size = rows.by_size("latents", self._look)
        """Rows of each size, px, if there are several."""
        if stage.resolution is not None:
            sizing = Sizing(factor=self.factor, several=True, resolution=whole["resolution"])
            self.by_size = regrouped(self.by_size, lambda size: sizing.shrunk(size, said["resolution"]))

        def decode(column: str) -> Decoded | Grouped:
            return decoded(
                lambda n: from_npy(rows.read(n, "latents", column)),
                len(rows),
                tuple(self.by_size.values()),
                dtype=np.float16,
                budget=budget,
            )

        self.moments = decode(column(stage.resolution))
        self.flipped = decode(column(stage.resolution, flipped=True)) if stage.flips else None
        self.small: SmallImages | None = None
        if stage.low_resolution is not None and len(rows):
            self.small = SmallImages(stage.low_resolution, rows, factor=self.factor, budget=budget)
        self._label = functools.lru_cache(maxsize=LABELS)(self._class)

    def _look(self, number: int) -> Size:
        height, width = from_npy(self.rows.read(number, "latents", "moments.npy")).shape[1:]
        return (width * self.factor, height * self.factor)

    def flips(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """Which positions see their sample mirrored: half of them, where that was asked for."""
        if self.flipped is None:
            return np.zeros(len(positions), bool)
        return (randomness.uniform(seed, positions, "flip") < 0.5).numpy()

    def latents(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> Tensor:
        """Drawn from the posterior, mirrored or not, and whitened."""
        moments = self.moments[indices]
        if self.flipped is not None:
            flip = self.flips(seed, positions)
            moments = np.where(flip[:, None, None, None], self.flipped[indices], moments)
        mean, std = torch.from_numpy(moments).float().chunk(2, dim=1)
        noise = randomness.normal(seed, positions, mean.shape[1:], "posterior")
        return self.statistics.whiten(Moments(mean=mean, std=std).sample(noise))

    def captions(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> list[TextEmbedding | None]:
        """One caption of each sample, drawn by weight; None where it has none."""
        if self.texts is None:
            return [None] * len(indices)
        u = randomness.uniform(seed, positions, "caption").tolist()
        return self.texts.chosen(self.rows, indices.tolist(), u)

    def labels(self, indices: np.ndarray) -> list[int | None]:
        if not self.labelled:
            return [None] * len(indices)
        return [self._label(n) for n in indices.tolist()]

    def _class(self, number: int) -> int | None:
        if not self.rows.has(number, "images", "cls"):
            return None
        return self._ids[int(self.rows.read(number, "images", "cls"))]


def rows_of(stage: Train, datasets: Mapping[str, Dataset], *, split: str, **options: Any) -> Rows:
    """Rows of a split that can be trained on."""
    columns = {"latents": column(stage.resolution), "originals": "image", "features": "features.npy"}
    columns |= {KEEP: KEEP}
    reads = {"text": ("text.json",), "images": ("cls",)}
    if stage.flips:
        reads["latents"] = (column(stage.resolution, flipped=True),)
    return Rows(
        datasets,
        split=split,
        required={name: of for name, of in columns.items() if name in datasets},
        reads=reads,
        shared=("text",),
        cache=stage.cache,
        shuffle=stage.shuffle,
        **options,
    )
