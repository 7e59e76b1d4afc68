"""Parameters and floating-point operations of networks, from their configuration, without torch.

An operation is a multiplication or an addition, so a product of matrices [n, k] [k, m] counts 2 n k m. Norms,
activations and other work in proportion to the activations are left out: a few percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusion.config import (
    AutoencoderConfig,
    DeepCompressionAutoencoderConfig,
    DeepCompressionLevel,
    DiTConfig,
    IdentityAutoencoderConfig,
    KLAutoencoderConfig,
    NetworkConfig,
    SpatialAutoencoderConfig,
    TinyAutoencoderConfig,
)

_TIME = 256
"""Sines and cosines of the time embedding."""


@dataclass(frozen=True, kw_only=True)
class Work:
    flops: float = 0.0
    """Of one sample's forward pass."""
    parameters: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(flops=self.flops + other.flops, parameters=self.parameters + other.parameters)

    def times(self, count: int) -> Work:
        return Work(flops=count * self.flops, parameters=count * self.parameters)


def matrix(rows: float, inputs: int, outputs: int) -> Work:
    """A linear layer on `rows` vectors."""
    return Work(flops=2.0 * rows * inputs * outputs, parameters=inputs * outputs)


def convolution(side: float, kernel: int, inputs: int, outputs: int) -> Work:
    """With `side` x `side` places in its output."""
    return matrix(side * side, kernel * kernel * inputs, outputs)


def network(
    config: NetworkConfig,
    *,
    channels: int,
    size: int,
    classes: int = 0,
    text_width: int | None = None,
    tokens: int = 0,
    low_channels: int = 0,
) -> Work:
    """A denoiser of latents [channels, size, size] with `tokens` text tokens."""
    if isinstance(config, DiTConfig):
        given = {"channels": channels + low_channels, "size": size, "classes": classes}
        return _transformer(config, outputs=channels, text_width=text_width, tokens=tokens, **given)
    widths = [config.channels * m for m in config.multipliers]
    condition, side = 4 * widths[0], size / config.stem
    total = _embedding(condition).times(2 if low_channels else 1)
    total += Work(parameters=(classes + 1) * condition if classes else 0)
    total += matrix(1, text_width, condition) if text_width else Work()
    total += convolution(side, 3, (channels + low_channels) * config.stem**2, widths[0])
    for level, wide in enumerate(widths):
        here = side / 2**level
        if level:
            total += convolution(here, 2, widths[level - 1], wide)
            total += convolution(here, 1, wide, 4 * widths[level - 1])
        second, modulation = convolution(here, 3, wide, wide), matrix(1, condition, 2 * wide)
        down = second.times(2) + modulation
        up = convolution(here, 3, 2 * wide, wide) + second + modulation + convolution(here, 1, 2 * wide, wide)
        total += (down + up).times(config.blocks)
    return total + convolution(side, 3, widths[0], channels * config.stem**2)


def share_seen(config: NetworkConfig, tokens: float) -> float:
    """Of a network's operations, where its middle blocks see that share of the tokens."""
    if not isinstance(config, DiTConfig):
        return 1.0
    first, last = config.routed
    return 1 - (1 - tokens) * (last - first) / config.depth


def pretrained(config: Any, parameters: int, *, size: int) -> Work:
    """A denoiser of diffusers on latents of a side, by its parameters alone: a transformer's are used once a
    patch, a UNet's about once in twelve latents, as in Stable Diffusion's."""
    places = size * size / (config.multiple**2 if config.transformer else 12)
    return Work(flops=2.0 * parameters * places, parameters=parameters)


def _transformer(
    config: DiTConfig,
    *,
    channels: int,
    outputs: int,
    size: int,
    classes: int,
    text_width: int | None,
    tokens: int,
) -> Work:
    width, n, m = config.width, (size // config.patch) ** 2, tokens + 1  # a null token stands before the text
    hidden = max(32, round(config.mlp_ratio * width / 32) * 32)
    attention = matrix(n, width, 4 * width) + Work(flops=4.0 * n * n * width)
    block = attention + matrix(n, width, 3 * hidden) + matrix(1, width, 6 * width)
    total = block.times(config.depth)
    if text_width:
        cross = matrix(n, width, 2 * width) + matrix(m, width, 2 * width) + Work(flops=4.0 * n * m * width)
        total += cross.times(-(-config.depth // config.cross_every))
        total += matrix(tokens, text_width, width) + matrix(1, text_width, width)
    total += Work(parameters=(classes + 1) * width if classes else 0)
    total += matrix(n, config.patch**2 * channels, width) + matrix(n, width, config.patch**2 * outputs)
    return total + _embedding(width) + matrix(1, width, 2 * width)


def _embedding(width: int) -> Work:
    return matrix(1, _TIME, width) + matrix(1, width, width)


def autoencoder(config: AutoencoderConfig, *, side: int) -> tuple[Work, Work]:
    """Encoder and decoder on images of `side` x `side` px."""
    match config:
        case IdentityAutoencoderConfig():
            return Work(), Work()
        case KLAutoencoderConfig():
            return _kl(config, side)
        case SpatialAutoencoderConfig():
            return _spatial(config, side)
        case TinyAutoencoderConfig():
            return _tiny(config, side)
        case DeepCompressionAutoencoderConfig():
            return _deep_compression(config, side)


def latent_shape(config: AutoencoderConfig, side: int) -> tuple[int, int]:
    """Channels, and side, of the latents of an image."""
    return config.latent_channels, side // config.factor


def _kl(config: KLAutoencoderConfig, side: float) -> tuple[Work, Work]:
    widths = [config.channels * m for m in config.multipliers]
    folded, fine = 3 * config.stem**2, side / config.stem
    low = fine / 2 ** (len(widths) - 1)
    encoder = convolution(fine, 3, folded, widths[0])
    decoder = convolution(low, 3, config.latent_channels, widths[-1])
    for level, wide in enumerate(widths):
        here = fine / 2**level
        block = convolution(here, 3, wide, wide).times(2)
        encoder += block.times(config.blocks)
        decoder += block.times(config.blocks + 1)
        if level:
            encoder += convolution(here, 4, widths[level - 1], wide)
            decoder += convolution(here, 1, wide, 4 * widths[level - 1])
    encoder += convolution(low, 1, widths[-1], 2 * config.latent_channels)
    return encoder, decoder + convolution(fine, 3, widths[0], folded)


def _spatial(config: SpatialAutoencoderConfig, side: float) -> tuple[Work, Work]:
    widths, latents, low = config.channels, config.latent_channels, side / config.factor

    def look(here: float, wide: int) -> Work:
        return matrix(here**2, wide, 4 * wide) + Work(flops=4 * here**4 * wide)

    def blocks(level: int, count: int, inputs: int) -> Work:
        here, wide = side / 2**level, widths[level]
        first = convolution(here, 3, inputs, wide) + convolution(here, 3, wide, wide)
        first += convolution(here, 1, inputs, wide) if inputs != wide else Work()
        total = first + convolution(here, 3, wide, wide).times(2 * (count - 1))
        return total + (look(here, wide).times(count) if level in config.attention else Work())

    middle = convolution(low, 3, widths[-1], widths[-1]).times(4)
    middle += look(low, widths[-1]) if config.middle_attention else Work()
    encoder = convolution(side, 3, 3, widths[0]) + middle + convolution(low, 3, widths[-1], 2 * latents)
    decoder = convolution(low, 3, latents, widths[-1]) + middle + convolution(side, 3, widths[0], 3)
    encoder += convolution(low, 1, 2 * latents, 2 * latents) if config.quant_conv else Work()
    decoder += convolution(low, 1, latents, latents) if config.post_quant_conv else Work()
    for level, wide in enumerate(widths):
        encoder += blocks(level, config.blocks, widths[max(level - 1, 0)])
        decoder += blocks(level, config.blocks + 1, widths[min(level + 1, len(widths) - 1)])
        if level:
            encoder += convolution(side / 2**level, 3, widths[level - 1], widths[level - 1])
            decoder += convolution(side / 2 ** (level - 1), 3, wide, wide)
    return encoder, decoder


def _tiny(config: TinyAutoencoderConfig, side: float) -> tuple[Work, Work]:
    low, latents = side / config.factor, config.latent_channels
    wide, narrow = config.encoder_channels, config.decoder_channels
    encoder = convolution(side, 3, 3, wide) + convolution(low, 3, wide, latents)
    decoder = convolution(low, 3, latents, narrow) + convolution(side, 3, narrow, 3)
    for level, (down, up) in enumerate(
        zip(config.encoder_blocks, reversed(config.decoder_blocks), strict=True)
    ):
        here = side / 2**level
        encoder += convolution(here, 3, wide, wide).times(3 * down + bool(level))
        decoder += convolution(here, 3, narrow, narrow).times(3 * up + (here > low))
    return encoder, decoder


def _deep_compression(config: DeepCompressionAutoencoderConfig, side: float) -> tuple[Work, Work]:
    low, latents = side / config.factor, config.latent_channels

    def resampled(fine: float, inputs: int, outputs: int, *, up: bool) -> Work:
        """Between `fine` and half of it, from `inputs` channels or to them."""
        if up:
            folded = config.up == "pixel_shuffle"
            return (
                convolution(fine / 2, 3, outputs, 4 * inputs)
                if folded
                else convolution(fine, 3, outputs, inputs)
            )
        folded = config.down == "pixel_unshuffle"
        return (
            convolution(fine, 3, inputs, outputs // 4)
            if folded
            else convolution(fine / 2, 3, inputs, outputs)
        )

    def half(levels: tuple[DeepCompressionLevel, ...], *, up: bool) -> Work:
        total = convolution(low, 3, latents, levels[-1].channels)
        begins = levels[0] if levels[0].blocks else levels[1]
        if levels[0].blocks:
            total += convolution(side, 3, 3, begins.channels)
        else:
            total += resampled(side, 3, begins.channels, up=up)
        for number, level in enumerate(levels):
            here = side / 2**number
            total += _deep_block(level, config.head_width, here).times(level.blocks)
            if level.blocks and number < len(levels) - 1:
                total += resampled(here, level.channels, levels[number + 1].channels, up=up)
        return total

    return half(config.encoder, up=False), half(config.decoder, up=True)


def _deep_block(level: DeepCompressionLevel, head: int, side: float) -> Work:
    wide, places = level.channels, side**2
    if not level.attention:
        return convolution(side, 3, wide, wide).times(2)
    looks = 1 + len(level.scales)
    attention = matrix(places, wide, 3 * wide) + matrix(places, looks * wide, wide)
    attention += Work(flops=looks * wide * (4 * head + 2) * places)
    for scale in level.scales:
        attention += convolution(side, scale, 1, 3 * wide) + convolution(side, 1, head, 3 * wide)
    gated = convolution(side, 1, wide, 8 * wide) + convolution(side, 3, 1, 8 * wide)
    return attention + gated + convolution(side, 1, 4 * wide, wide)
