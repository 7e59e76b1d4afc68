"""What an autoencoder is to the rest: images to moments, latents to images, and its factor."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from diffusion.latents import Moments


class Autoencoder(nn.Module, ABC):
    factor: int
    """Pixels per latent, along a side."""
    latent_channels: int
    reach: tuple[int, int] | None = None
    """Pixels on each side that a latent depends on (encode), and latents on each side that a pixel depends on
    (decode); None where it is all of the image (norms over space, attention)."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "b c h w"]) -> Moments:
        """Images in [-1, 1], sides a multiple of `factor` -> the posterior's mean and std, unscaled."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b z i j"]) -> Float[Tensor, "b c h w"]:
        """Latents as drawn from the moments (not whitened) -> images, about [-1, 1], not clamped."""
