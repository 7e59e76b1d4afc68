"""Upscalers: models that draw an image again, larger.

from pipelines.upscaler import load
upscaler = load("models:/upscale-upscaler@champion")
upscaler.enlarge([photo])[0].save("large.png")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines import models

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffusion.config import SamplerConfig
    from pipelines.models import SnapshotFolder
    from pipelines.sampling import Drawing, LatentModel


def load(reference: str | Path, *, store: str | Path | None = None, device: str | None = None) -> Upscaler:
    """An upscaler by path, URL, name or registry; see `pipelines.models.load`. `ValueError` if it is none."""
    return Upscaler(models.find(reference, store=store), device=device)


class Upscaler:
    """Enlarges images of any size. `ValueError` for a snapshot that is no upscaler."""

    def __init__(self, folder: SnapshotFolder, *, device: str | None = None) -> None:
        check(folder)
        self.folder = folder
        self.model: LatentModel = models.latent_model(folder, device=device)
        assert self.model.upscaling is not None
        self.factor = self.model.upscaling.factor

    @property
    def sampler(self) -> SamplerConfig:
        """The sampler that the training drew its own pictures with."""
        return models.sampler_config(self.folder.record["sampling"]["sampler"])

    def enlarge(
        self,
        images: Sequence[Image],
        *,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        level: float = 0.0,
        sampler: SamplerConfig | None = None,
        micro_batch: int = 1,
    ) -> list[Image]:
        """Each image `factor` times larger.

        An image depends on seed, its index, itself, and on `micro_batch`; not on the others.

        Args:
            indices: one an image; 0, 1, 2, ... if None.
            level: noise mixed into the images, 0 to 1, at most what training saw: 0 for clean ones, .1 to .3
                for those that another model drew or that were compressed.

        Raises:
            ValueError: a level above the training's, or images too small for the network.
        """
        from PIL import Image

        from pipelines import sampling

        given = [np.asarray(image.convert("RGB")) for image in images]
        places = range(len(given)) if indices is None else indices
        drawings = [
            sampling.Drawing(index=index, small=image, level=level)
            for index, image in zip(places, given, strict=True)
        ]
        drawn = self.draw(drawings, seed=seed, sampler=sampler, micro_batch=micro_batch)
        return [Image.fromarray(image) for image in drawn]

    def draw(
        self,
        drawings: Sequence[Drawing],
        *,
        seed: int,
        sampler: SamplerConfig | None = None,
        micro_batch: int,
    ) -> list[np.ndarray]:
        """Drawings with small images as uint8 [h, w, 3]; sides that do not suit the autoencoder are filled up
        by repeating the border, and cut off again."""
        from diffusion.config import GuidanceConfig
        from pipelines import sampling

        assert self.model.upscaling is not None
        multiple = self.model.autoencoder.factor
        filled, sizes = [], []
        for drawing in drawings:
            assert drawing.small is not None
            self._check(drawing)
            height, width = (side * self.factor for side in drawing.small.shape[:2])
            sizes.append((height, width))
            missing = [-(-(-side % multiple) // self.factor) for side in (height, width)]
            small = np.pad(drawing.small, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
            filled.append(dataclasses.replace(drawing, small=small))
        images = sampling.draw(
            self.model,
            filled,
            seed=seed,
            sampler=sampler or self.sampler,
            guidance=GuidanceConfig(scale=1.0),
            micro_batch=micro_batch,
        )
        return [image[:height, :width] for image, (height, width) in zip(images, sizes, strict=True)]

    def _check(self, drawing: Drawing) -> None:
        assert self.model.upscaling is not None
        assert drawing.small is not None
        if not 0 <= drawing.level <= self.model.upscaling.noise:
            raise ValueError(
                f"level is {drawing.level}; "
                f"this upscaler learned levels from 0 to {self.model.upscaling.noise:g}."
            )
        least = self.model.tile * self.model.autoencoder.factor // self.factor
        if self.folder.record["network"]["kind"] == "dit" and min(drawing.small.shape[:2]) < least:
            height, width = drawing.small.shape[:2]
            raise ValueError(
                f"This upscaler's transformer takes images of {least} px and more a side, and one has "
                f"{width} x {height}; train one with `network: {{kind: unet}}` for smaller ones."
            )


def check(folder: SnapshotFolder) -> None:
    """`ValueError` for a snapshot that is no upscaler."""
    if not folder.record.get("upscaling"):
        raise ValueError(
            f"{folder.storage.url} is no upscaler: "
            "give a snapshot of a train stage that had `low_resolution`."
        )
