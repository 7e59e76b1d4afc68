"""Super-resolution: what a denoiser is told of the small image, and what is left for it to add.

The condition is the small image, enlarged and seen as latents, with noise mixed in at a level that the
network is told: so it learns not to trust what another model drew (Ho et al., 2022, "Cascaded diffusion
models", section 4.2). What is denoised is the residual, the large image's latents less those of the enlarged
small one, as the small image is most of the answer (Li et al., 2022, "SRDiff", section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.conditioning import Conditioning
from diffusion.latents import LatentStatistics
from diffusion.noise import RectifiedFlow


@dataclass(frozen=True, kw_only=True)
class Upscaling:
    """Between images of two sizes and the latents that an upscaler denoises."""

    factor: int
    """Side of the large image over that of the small one."""
    noise: float
    """The highest level of noise in the small image that training mixed in."""
    scale: tuple[float, ...]
    """Root mean square of the residuals, one a latent channel."""

    def residual(
        self, latents: Float[Tensor, "b c h w"], low: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """What is to be added to the enlarged small image, with unit variance."""
        return (latents - low) / self._scale(latents)

    def restore(
        self, residual: Float[Tensor, "b c h w"], low: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """The inverse of `residual`."""
        return low + self._scale(low) * residual

    def tell(
        self,
        conditioning: Conditioning,
        low: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
    ) -> Conditioning:
        """The same conditions with (1 - level) low + level noise beside them."""
        return replace(conditioning, low=RectifiedFlow().perturb(low, noise, level), level=level)

    def to_json(self) -> dict[str, Any]:
        return {"factor": self.factor, "noise": self.noise, "scale": list(self.scale)}

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> Upscaling:
        return cls(factor=json["factor"], noise=json["noise"], scale=tuple(json["scale"]))

    def _scale(self, like: Float[Tensor, "b c h w"]) -> Float[Tensor, "1 c 1 1"]:
        return like.new_tensor(self.scale).reshape(1, -1, 1, 1)


def shrink(images: Float[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b c i j"]:
    """Images in [-1, 1], `factor` times smaller: bicubic with antialiasing, then rounded to 8 bits.

    Rounded because the small image will come from a file: a network could read fractions of a level.
    `ValueError` where a side is not a multiple of `factor`.
    """
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"Images of {width} x {height} px do not shrink by {factor}: crop them first.")
    size = (height // factor, width // factor)
    small = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return ((small.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def enlarge(images: Float[Tensor, "b c i j"], factor: int) -> Float[Tensor, "b c h w"]:
    """Images `factor` times larger, bicubic: where an upscaler starts, and what it must beat."""
    # "antialias" does nothing to what grows, but has the usual cubic (a = -0.5; Keys, 1981), not torch's own.
    size = (images.shape[-2] * factor, images.shape[-1] * factor)
    large = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return large.clamp(-1, 1)


@torch.no_grad()
def low_latents(
    small: Float[Tensor, "b 3 i j"], factor: int, autoencoder: Autoencoder, statistics: LatentStatistics
) -> Float[Tensor, "b c h w"]:
    """Small images as an upscaler sees them: enlarged, encoded (the posterior's mean) and whitened."""
    return statistics.whiten(autoencoder.encode(enlarge(small, factor)).mean)


def residual_scale(latents: Float[Tensor, "b c h w"], low: Float[Tensor, "b c h w"]) -> tuple[float, ...]:
    """Root mean square of latents - low, one a channel; ValueError where a channel has no residual at all."""
    found = (latents - low).double().square().mean((0, 2, 3)).sqrt()
    if not bool((found > 0).all()) or not bool(torch.isfinite(found).all()):
        raise ValueError(
            "The enlarged small images are the images: there is nothing for an upscaler to learn."
        )
    return tuple(found.tolist())
