"""Parameters and floating-point operations of networks, from their configuration, without torch.

An operation is a multiplication or an addition, so a product of matrices [n, k] [k, m] counts 2 n k m. Norms,
activations and other work in proportion to the activations are left out: a few percent.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion.config import AutoencoderConfig, DiTConfig, IdentityAutoencoderConfig, NetworkConfig

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
    if isinstance(config, IdentityAutoencoderConfig):
        return Work(), Work()
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


def latent_shape(config: AutoencoderConfig, side: int) -> tuple[int, int]:
    """Channels, and side, of the latents of an image."""
    if isinstance(config, IdentityAutoencoderConfig):
        return 3, side
    return config.latent_channels, side // config.factor
