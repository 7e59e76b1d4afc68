"""What makes a denoiser an upscaler in training: each sample's image, shrunk at load, as a condition."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion import randomness
from diffusion.config import LowResolutionConfig
from diffusion.upscaling import shrink
from pipelines.arrays import pixels
from pipelines.sampling import normalised, to_pixels
from pipelines.training.tasks.decoded import Decoded
from pipelines.training.tasks.rows import Rows


@dataclass(frozen=True, eq=False)
class SmallShare:
    """The small images of a batch."""

    small: Tensor
    """[b, 3, i, j] in [-1, 1], rounded to 8 bits."""
    noise: Tensor
    """Of the latents' shape, mixed into the condition at `level`."""
    level: Tensor
    """[b]."""

    def to(self, device: torch.device) -> SmallShare:
        return SmallShare(*(t.to(device, non_blocking=True) for t in (self.small, self.noise, self.level)))


class SmallImages:
    """Rows' images by number, as the condition that goes with their latents.

    Raises:
        ValueError: image and latents do not lie on one another, or a crop does not fit.
    """

    def __init__(self, config: LowResolutionConfig, rows: Rows, *, factor: int, budget: int) -> None:
        """`factor`: of the autoencoder, pixels a latent."""
        self.config = config
        self.images = Decoded(
            lambda n: pixels(rows.read(n, "originals", "image")), len(rows), dtype=np.uint8, budget=budget
        )
        height, width, _ = self.images.shape
        self.grid = math.lcm(config.factor, factor)
        """Crops begin and end on it, px: whole small pixels and whole latents."""
        self.latent = factor
        side = config.crop or min(height, width)
        if side > min(height, width) or side % self.grid or height % self.grid or width % self.grid:
            raise ValueError(
                f"Images of {width} x {height} px and a crop of {side} px: an upscaler by {config.factor} "
                f"takes sides that are multiples of {self.grid}, and a crop no larger than the images."
            )

    def whole(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 images [b, h, w, 3], and the same shrunk."""
        large = self.images[indices]
        small = shrink(normalised(torch.from_numpy(large).permute(0, 3, 1, 2)), self.config.factor)
        return large, to_pixels(small)

    def cut(
        self, latents: Tensor, seed: int, positions: np.ndarray, indices: np.ndarray, *, flip: np.ndarray
    ) -> tuple[Tensor, SmallShare]:
        """The piece of the latents that each position sees, and the small image of the same piece."""
        images = self.images[indices]
        images = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
        if self.config.crop is not None:
            places = self._places(seed, positions)
            side, f = self.config.crop, self.latent
            images = np.stack(
                [image[y : y + side, x : x + side] for image, (y, x) in zip(images, places, strict=True)]
            )
            latents = torch.stack(
                [
                    z[:, y // f : (y + side) // f, x // f : (x + side) // f]
                    for z, (y, x) in zip(latents, places, strict=True)
                ]
            )
        large = normalised(torch.from_numpy(images).permute(0, 3, 1, 2))
        level = randomness.uniform(seed, positions, "low level") * self.config.noise
        noise = randomness.normal(seed, positions, latents.shape[1:], "low noise")
        return latents, SmallShare(shrink(large, self.config.factor), noise, level)

    def _places(self, seed: int, positions: np.ndarray) -> list[tuple[int, int]]:
        """Upper left corners, px."""
        height, width, _ = self.images.shape
        assert self.config.crop is not None
        found = []
        for side, stream in ((height, "crop rows"), (width, "crop columns")):
            count = (side - self.config.crop) // self.grid + 1
            u = randomness.uniform(seed, positions, stream).double().numpy()
            found.append(np.minimum((u * count).astype(np.int64), count - 1) * self.grid)
        return list(zip(found[0].tolist(), found[1].tolist(), strict=True))
