"""Autoencoders that a recipe can choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffusion.autoencoders.autoencoder import Autoencoder


@dataclass(frozen=True, kw_only=True)
class KLAutoencoderConfig:
    """A convolutional autoencoder with a Gaussian posterior."""

    kind: Literal["kl"] = "kl"
    latent_channels: int = 8
    channels: int = 64
    """Of the finest level."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level over `channels`, fine to coarse; each level after the first halves the side."""
    stem: int = 2
    """Side of the pixel blocks that are folded into channels before the first convolution."""
    blocks: int = 1
    """Residual blocks a level in the encoder; the decoder has one more."""

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return self.stem * 2 ** (len(self.multipliers) - 1)

    def build(self, *, image_channels: int = 3) -> Autoencoder:
        from diffusion.autoencoders.kl import KLAutoencoder

        return KLAutoencoder(
            image_channels=image_channels,
            latent_channels=self.latent_channels,
            channels=tuple(self.channels * m for m in self.multipliers),
            stem=self.stem,
            blocks=self.blocks,
        )


@dataclass(frozen=True, kw_only=True)
class IdentityAutoencoderConfig:
    """Pixels as latents."""

    kind: Literal["identity"] = "identity"

    @property
    def factor(self) -> int:
        return 1

    def build(self, *, image_channels: int = 3) -> Autoencoder:
        from diffusion.autoencoders.identity import IdentityAutoencoder

        return IdentityAutoencoder(image_channels=image_channels)


AutoencoderConfig = KLAutoencoderConfig | IdentityAutoencoderConfig
