from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion.conditioning import Conditioning
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
    UNetConfig,
)
from pipelines.costs import arithmetic


def counted(call: Any, module: torch.nn.Module) -> tuple[int, int]:
    """Operations that torch counts, and parameters."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops(), sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("config", "size", "conditions"),
    [
        (DiTConfig(width=768, depth=12, heads=12, patch=2), 32, {"text_width": 768, "tokens": 77}),
        (
            DiTConfig(width=192, depth=6, heads=3, patch=3),
            12,
            {"text_width": 384, "tokens": 16, "classes": 8},
        ),
        (DiTConfig(width=192, depth=6, heads=3, patch=2, cross_every=4), 16, {"text_width": 64, "tokens": 8}),
        (DiTConfig(width=192, depth=6, heads=3, patch=2), 16, {"classes": 10}),
        (UNetConfig(channels=48, multipliers=(1, 2)), 48, {"low_channels": 4}),
        (UNetConfig(channels=32, multipliers=(1, 2, 3), blocks=2), 32, {"classes": 4, "text_width": 64}),
    ],
    ids=["DiT-B/2", "quickstart", "cross", "classes", "upscaler", "unet"],
)
def test_a_denoisers_work_is_what_torch_counts(
    config: NetworkConfig, size: int, conditions: dict[str, int]
) -> None:
    tokens = conditions.get("tokens", 0)
    given = {name: value for name, value in conditions.items() if name != "tokens"}
    classes, text, low = (given.get(name, 0) for name in ("classes", "text_width", "low_channels"))
    with torch.device("meta"):
        module = config.build(channels=4, size=size, **given)
        condition = Conditioning(
            label=torch.zeros(1, dtype=torch.long) if classes else None,
            classes=classes,
            text=torch.zeros(1, tokens, text) if tokens else None,
            mask=torch.ones(1, tokens, dtype=torch.bool) if tokens else None,
            pooled=torch.zeros(1, text) if text else None,
            low=torch.zeros(1, low, size, size) if low else None,
            level=torch.zeros(1) if low else None,
        )
        x, t = torch.zeros(1, 4, size, size), torch.zeros(1)
        flops, parameters = counted(lambda: module(x, t, condition), module)
    work = arithmetic.network(config, channels=4, size=size, **conditions)
    assert work.flops == pytest.approx(flops, rel=0.01)
    assert work.parameters == pytest.approx(parameters, rel=0.02)


def _level(channels: int, blocks: int = 1, **given: Any) -> DeepCompressionLevel:
    return DeepCompressionLevel(channels=channels, blocks=blocks, **given)


HALF = (
    _level(96, 0),
    _level(128),
    _level(256, 2, attention=True, scales=(3, 5)),
    _level(256, attention=True),
)


@pytest.mark.parametrize(
    "config",
    [
        KLAutoencoderConfig(latent_channels=4, channels=32, multipliers=(1, 2), stem=2, blocks=1),
        KLAutoencoderConfig(latent_channels=4, channels=128, multipliers=(1, 2, 4), stem=2, blocks=2),
        IdentityAutoencoderConfig(),
        SpatialAutoencoderConfig(),
        SpatialAutoencoderConfig(channels=(128,), blocks=1, quant_conv=False, middle_attention=False),
        SpatialAutoencoderConfig(
            channels=(128, 192, 192), attention=(0, 2), post_quant_conv=False, latent_channels=16
        ),
        TinyAutoencoderConfig(),
        TinyAutoencoderConfig(
            encoder_blocks=(0, 2), decoder_blocks=(4, 3), encoder_channels=128, latent_channels=16
        ),
        DeepCompressionAutoencoderConfig(),
        DeepCompressionAutoencoderConfig(
            latent_channels=64, encoder=HALF, decoder=HALF, down="pixel_unshuffle", up="pixel_shuffle"
        ),
        DeepCompressionAutoencoderConfig(latent_channels=64, encoder=HALF, decoder=HALF, head_width=64),
    ],
)
def test_an_autoencoders_work_is_what_torch_counts(config: AutoencoderConfig) -> None:
    side = 64
    with torch.device("meta"):
        module = config.build()
        flops, parameters = counted(lambda: module.encode(torch.zeros(1, 3, side, side)), module)
        channels, low = arithmetic.latent_shape(config, side)
        more, _ = counted(lambda: module.decode(torch.zeros(1, channels, low, low)), module)
    encoder, decoder = arithmetic.autoencoder(config, side=side)
    assert (encoder.flops, decoder.flops) == (flops, more)
    assert (encoder + decoder).parameters == pytest.approx(parameters, rel=0.02)
