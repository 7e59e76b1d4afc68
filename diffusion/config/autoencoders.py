"""Autoencoders that a recipe can choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diffusion.config.deep_compression import DeepCompressionAutoencoderConfig

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

    @property
    def latent_channels(self) -> int:
        """Of colour images."""
        return 3

    def build(self, *, image_channels: int = 3) -> Autoencoder:
        from diffusion.autoencoders.identity import IdentityAutoencoder

        return IdentityAutoencoder(image_channels=image_channels)


@dataclass(frozen=True, kw_only=True)
class SpatialAutoencoderConfig:
    """The autoencoder of latent diffusion (Rombach et al., 2022), as which Stable Diffusion 1 to 3 and FLUX
    come; by default the shape of Stable Diffusion 1 and XL. 3 and FLUX have 16 latent channels and neither
    of the convolutions on latents."""

    kind: Literal["spatial"] = "spatial"
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    """Of each level, fine to coarse; each level after the first halves the side."""
    blocks: int = 2
    """Residual blocks a level in the encoder; the decoder has one more."""
    groups: int = 32
    """Of channels that are normalised together."""
    middle_attention: bool = True
    """All places of the coarsest level look at each other, once in the encoder and once in the decoder."""
    attention: tuple[int, ...] = ()
    """Levels, 0 the finest, where they do after every residual block."""
    quant_conv: bool = True
    """A 1x1 convolution after the encoder, on mean and log variance."""
    post_quant_conv: bool = True
    """A 1x1 convolution before the decoder."""

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("channels is empty; it has the width of each level.")
        if min(*self.channels, self.latent_channels, self.blocks, self.groups) < 1:
            raise ValueError("channels, latent_channels, blocks and groups must be 1 or more.")
        if any(width % self.groups for width in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of groups ({self.groups}).")
        if not set(self.attention) <= set(range(len(self.channels))):
            raise ValueError(f"attention {self.attention} names levels beyond 0 to {len(self.channels) - 1}.")

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return 2 ** (len(self.channels) - 1)

    def build(self, *, image_channels: int = 3) -> Autoencoder:
        from diffusion.autoencoders.spatial import SpatialAutoencoder

        return SpatialAutoencoder(
            image_channels=image_channels,
            latent_channels=self.latent_channels,
            channels=self.channels,
            blocks=self.blocks,
            groups=self.groups,
            middle_attention=self.middle_attention,
            attention=self.attention,
            quant_conv=self.quant_conv,
            post_quant_conv=self.post_quant_conv,
        )


@dataclass(frozen=True, kw_only=True)
class TinyAutoencoderConfig:
    """A small convolutional autoencoder distilled from a large one (TAESD; Boer Bohan, 2023), by default from
    Stable Diffusion's; from those of Stable Diffusion 3 and FLUX, with 16 latent channels. Its latents are
    about as large as that one's are after scaling. Deterministic: an image has one latent."""

    kind: Literal["tiny"] = "tiny"
    latent_channels: int = 4
    encoder_channels: int = 64
    decoder_channels: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    """Residual blocks of each level, fine to coarse; each level after the first halves the side."""
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    """Residual blocks of each level, coarse to fine."""
    activation: Literal["relu", "silu", "gelu", "mish"] = "relu"
    """Within the residual blocks, whose sum a ReLU follows."""

    def __post_init__(self) -> None:
        if min(self.latent_channels, self.encoder_channels, self.decoder_channels) < 1:
            raise ValueError("latent_channels, encoder_channels and decoder_channels must be 1 or more.")
        if len(self.encoder_blocks) != len(self.decoder_blocks) or not self.encoder_blocks:
            raise ValueError("encoder_blocks and decoder_blocks must have a number for each level.")
        if min(self.encoder_blocks + self.decoder_blocks) < 0:
            raise ValueError("encoder_blocks and decoder_blocks must be 0 or more.")

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return 2 ** (len(self.encoder_blocks) - 1)

    def build(self, *, image_channels: int = 3) -> Autoencoder:
        from diffusion.autoencoders.tiny import TinyAutoencoder

        return TinyAutoencoder(
            image_channels=image_channels,
            latent_channels=self.latent_channels,
            encoder_channels=self.encoder_channels,
            decoder_channels=self.decoder_channels,
            encoder_blocks=self.encoder_blocks,
            decoder_blocks=self.decoder_blocks,
            activation=self.activation,
        )


AutoencoderConfig = (
    KLAutoencoderConfig
    | IdentityAutoencoderConfig
    | SpatialAutoencoderConfig
    | TinyAutoencoderConfig
    | DeepCompressionAutoencoderConfig
)
