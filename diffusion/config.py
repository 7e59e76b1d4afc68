"""What a recipe can choose in the core: frozen dataclasses that load without torch and build with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffusion.autoencoders.autoencoder import Autoencoder
    from diffusion.networks.dit import DiT


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A diffusion transformer of about 14 width^2 depth parameters, on (latent side / patch)^2 tokens."""

    kind: Literal["dit"] = "dit"
    width: int = 256
    """Channels of a token."""
    depth: int = 6
    """Blocks."""
    heads: int = 4
    """Attention heads; width / heads must be a multiple of 4, and 32 to 64 is usual."""
    patch: int = 2
    """Side of a token, in latents."""
    mlp_ratio: float = 8 / 3
    """Hidden width of the feed-forward over width; 8/3 with its three matrices costs what 4 does with two."""
    cross_every: int = 1
    """One block in so many looks at the text tokens."""

    def build(self, *, channels: int, size: int, classes: int = 0, text_width: int | None = None) -> DiT:
        """For latents of `channels` x `size` x `size`; classes 0 and text_width None leave that condition out."""
        from diffusion.networks.dit import DiT

        return DiT(
            channels=channels,
            size=size,
            classes=classes,
            text_width=text_width,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            patch=self.patch,
            mlp_ratio=self.mlp_ratio,
            cross_every=self.cross_every,
        )


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


NetworkConfig = DiTConfig
AutoencoderConfig = KLAutoencoderConfig | IdentityAutoencoderConfig
