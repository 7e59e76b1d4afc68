"""Floating-point operations of networks in closed form, from their configuration, without torch.

A multiplication or an addition is one operation, so a product of matrices [n, k] [k, m] counts 2 n k m: twice
the "Gflops" of Peebles & Xie, 2023, which are multiply-adds. Norms, activations and other work in proportion
to the activations are left out, as torch's own counter does (`torch.utils.flop_counter`).
"""

from __future__ import annotations

import math

from diffusion.config.networks import DiTConfig, NetworkConfig, UNetConfig

_FEATURES = 256
"""Sines and cosines of one number in an embedding."""


def flops(
    config: NetworkConfig,
    *,
    channels: int,
    size: int | tuple[int, int],
    text_tokens: int = 0,
    text_width: int | None = None,
    pooled_width: int | None = None,
    low_channels: int = 0,
    classes: int = 0,
    kept: float = 1.0,
) -> int:
    """Of the forward pass of one image that is given every condition that the network takes; forward and
    backward together are three times that.

    Args:
        channels, size: of the latents, [channels, size, size], or [channels, *size].
        text_tokens: in the caption, padding included; the null token comes on top. With 0 the caption is a
            pooled vector alone.
        text_width, pooled_width, low_channels, classes: as the network is built with. A class is looked up,
            at no cost.
        kept: share of the tokens that take a transformer's routed blocks, as for `kept_tokens`.
    """
    del classes
    sides = (size, size) if isinstance(size, int) else size
    if isinstance(config, DiTConfig):
        total = _transformer(config, channels, sides, text_tokens, text_width, low_channels, kept)
        condition = config.width
    else:
        total = _convolutional(config, channels, sides, text_tokens, text_width, low_channels)
        condition = 4 * config.channels * config.multipliers[0]
    if text_width and pooled_width:
        total += _matrix(1, pooled_width, condition) - _matrix(1, text_width, condition)
    return total


def _transformer(
    config: DiTConfig,
    channels: int,
    sides: tuple[int, int],
    text_tokens: int,
    text_width: int | None,
    low_channels: int,
    kept: float,
) -> int:
    width, patch = config.width, config.patch**2
    tokens = math.prod(side // config.patch for side in sides)
    hidden = max(32, round(config.mlp_ratio * width / 32) * 32)
    start, end = config.routed
    few = max(1, round(kept * tokens))

    total = _matrix(tokens, patch * (channels + low_channels), width) + _matrix(
        tokens, width, patch * channels
    )
    total += _conditions(width, text_width, low_channels, config.size_conditioning)
    total += _matrix(1, width, 2 * width)
    if text_width:
        total += _matrix(text_tokens, text_width, width)
    for index in range(config.depth):
        n = few if start <= index < end else tokens
        total += _self_attention(n, width) + _matrix(n, width, 3 * hidden) + _matrix(1, width, 6 * width)
        if text_width and index % config.cross_every == 0:
            total += _cross_attention(n, width, text_tokens + 1, width)
    return total


def _convolutional(
    config: UNetConfig,
    channels: int,
    sides: tuple[int, int],
    text_tokens: int,
    text_width: int | None,
    low_channels: int,
) -> int:
    widths = [config.channels * m for m in config.multipliers]
    condition, multiple = 4 * widths[0], config.stem * 2 ** (len(widths) - 1)
    rows, columns = (-(-side // multiple) * multiple // config.stem for side in sides)
    levels = [(rows // 2**level) * (columns // 2**level) for level in range(len(widths))]
    folded = config.stem**2

    def residual(places: int, inputs: int, outputs: int) -> int:
        skip = _matrix(places, inputs, outputs) if inputs != outputs else 0
        convolutions = _matrix(places, 9 * inputs, outputs) + _matrix(places, 9 * outputs, outputs)
        return skip + convolutions + _matrix(1, condition, 2 * outputs)

    def look(places: int, width: int) -> int:
        cross = _cross_attention(places, width, text_tokens + 1, condition) if text_width else 0
        return _self_attention(places, width) + cross

    total = _conditions(condition, text_width, low_channels, config.size_conditioning)
    if text_width and config.attention:
        total += _matrix(text_tokens, text_width, condition)
    total += _matrix(levels[0], 9 * (channels + low_channels) * folded, widths[0])
    total += _matrix(levels[0], 9 * widths[0], channels * folded)
    for level, width in enumerate(widths):
        places = levels[level]
        if level:
            total += _matrix(places, 4 * widths[level - 1], width) + _matrix(
                places, width, 4 * widths[level - 1]
            )
        blocks = residual(places, width, width) + residual(places, 2 * width, width)
        total += config.blocks * (blocks + (2 * look(places, width) if level in config.attention else 0))
    if config.attention:
        places = levels[-1]
        total += 2 * residual(places, widths[-1], widths[-1]) + look(places, widths[-1])
    return total


def _conditions(width: int, text_width: int | None, low_channels: int, sized: bool) -> int:
    """The vector of time, pooled text, level and size."""
    total = _embedding(1, width) * (2 if low_channels else 1)
    total += _matrix(1, text_width, width) if text_width else 0
    return total + (_embedding(6, width) if sized else 0)


def _embedding(numbers: int, width: int) -> int:
    return _matrix(1, numbers * _FEATURES, width) + _matrix(1, width, width)


def _self_attention(tokens: int, width: int) -> int:
    return _matrix(tokens, width, 4 * width) + 2 * _matrix(tokens, width, tokens)


def _cross_attention(tokens: int, width: int, others: int, context: int) -> int:
    projections = _matrix(tokens, width, 2 * width) + _matrix(others, context, 2 * width)
    return projections + 2 * _matrix(tokens, width, others)


def _matrix(rows: int, inputs: int, outputs: int) -> int:
    """A product [rows, inputs] [inputs, outputs]; a convolution is one at each place of its output."""
    return 2 * rows * inputs * outputs
