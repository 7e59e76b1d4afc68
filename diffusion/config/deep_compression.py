"""The deep compression autoencoder that a recipe can choose."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffusion.autoencoders.autoencoder import Autoencoder

Activation = Literal["relu", "silu", "gelu", "mish"]


@dataclass(frozen=True, kw_only=True)
class DeepCompressionLevel:
    """The blocks of one resolution, in the encoder or in the decoder."""

    channels: int = 512
    blocks: int = 2
    """0 in the finest level: convolutions begin at half the side, as wide as the second."""
    attention: bool = False
    """Linear attention and a gated convolution in each block, rather than two convolutions."""
    scales: tuple[int, ...] = ()
    """Sides of the neighbourhoods that queries, keys and values are mixed over, beside those of one place."""
    norm: Literal["rms", "batch"] = "rms"
    """At the end of a block; of the decoder, the encoder's is always `rms`. `batch` goes by the statistics
    that came with the weights, in training too: it is for continuing those."""
    activation: Activation = "silu"
    """Within a block of two convolutions; of the decoder, the encoder's is always `silu`."""


def levels(
    channels: tuple[int, ...], blocks: tuple[int, ...], *, attention: int, scales: tuple[int, ...] = ()
) -> tuple[DeepCompressionLevel, ...]:
    """Levels, the coarsest `attention` of which have attention."""
    first = len(channels) - attention
    return tuple(
        DeepCompressionLevel(
            channels=width, blocks=number, attention=n >= first, scales=scales if n >= first else ()
        )
        for n, (width, number) in enumerate(zip(channels, blocks, strict=True))
    )


_CHANNELS = (128, 256, 512, 512, 1024, 1024)


@dataclass(frozen=True, kw_only=True)
class DeepCompressionAutoencoderConfig:
    """DC-AE (Chen et al., 2024): 32, 64 or 128 pixels a latent, by default the shape that SANA has (f32c32).
    Deterministic: an image has one latent."""

    kind: Literal["deep_compression"] = "deep_compression"
    latent_channels: int = 32
    encoder: tuple[DeepCompressionLevel, ...] = levels(
        _CHANNELS, (2, 2, 2, 3, 3, 3), attention=3, scales=(5,)
    )
    """Fine to coarse; each level after the first halves the side."""
    decoder: tuple[DeepCompressionLevel, ...] = levels(
        _CHANNELS, (3, 3, 3, 3, 3, 3), attention=3, scales=(5,)
    )
    """Fine to coarse, too."""
    head_width: int = 32
    """Channels of an attention head."""
    down: Literal["conv", "pixel_unshuffle"] = "conv"
    """Halves the side: a convolution of stride 2, or one whose 2x2 blocks are folded into channels."""
    up: Literal["interpolate", "pixel_shuffle"] = "interpolate"
    """Doubles the side: nearest neighbours and a convolution, or the opposite of folding."""
    encoder_shortcut: bool = True
    """Adds the mean of groups of channels to the encoder's last convolution."""
    decoder_shortcut: bool = True
    """Adds the latents, repeated, to the decoder's first convolution."""
    last_activation: Activation = "relu"
    """Before the decoder's last convolution."""

    def __post_init__(self) -> None:
        for name, side in (("encoder", self.encoder), ("decoder", self.decoder)):
            self._check(name, side)
        if len(self.encoder) != len(self.decoder):
            raise ValueError("encoder and decoder must have equally many levels.")
        if any(level.norm != "rms" or level.activation != "silu" for level in self.encoder):
            raise ValueError("The encoder's levels take norm: rms and activation: silu only.")

    def _check(self, name: str, side: tuple[DeepCompressionLevel, ...]) -> None:
        if len(side) < 2 or any(level.blocks < 1 for level in side[1:]) or side[0].blocks < 0:
            raise ValueError(f"{name} needs two levels or more, with blocks in each but the finest.")
        widths = [level.channels for level in side if level.blocks]
        if min(*widths, self.latent_channels, self.head_width) < 1:
            raise ValueError(f"{name}: channels, latent_channels and head_width must be 1 or more.")
        if any(width % 4 or 4 * fine % width for fine, width in pairwise(widths)):
            raise ValueError(
                f"{name}: channels {widths} must be multiples of 4 that divide four times those before them."
            )
        if any(level.attention and level.channels % self.head_width for level in side):
            raise ValueError(
                f"{name}: channels {widths} must be multiples of head_width ({self.head_width})."
            )
        shortcut = self.encoder_shortcut if name == "encoder" else self.decoder_shortcut
        if shortcut and widths[-1] % self.latent_channels:
            raise ValueError(f"{name}_shortcut needs channels that are a multiple of latent_channels.")

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return 2 ** (len(self.encoder) - 1)

    def build(self, *, image_channels: int = 3) -> Autoencoder:
        from diffusion.autoencoders.deep_compression import DeepCompressionAutoencoder

        return DeepCompressionAutoencoder(self, image_channels=image_channels)
