from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion.autoencoders.tiny import TinyAutoencoder
from diffusion.config import TinyAutoencoderConfig


@pytest.mark.parametrize(("encoder", "decoder"), [((1, 1), (1, 1)), ((0, 1, 2), (1, 0, 1))])
def test_it_sees_as_far_as_it_says(encoder: tuple[int, ...], decoder: tuple[int, ...]) -> None:
    """By gradients with positive weights, so that none cancel; GELU passes them on everywhere."""
    config = TinyAutoencoderConfig(
        encoder_channels=1,
        decoder_channels=1,
        latent_channels=1,
        encoder_blocks=encoder,
        decoder_blocks=decoder,
        activation="gelu",
    )
    autoencoder = config.build().double()
    for parameter in autoencoder.parameters():
        torch.nn.init.constant_(parameter, 0.2)
    assert autoencoder.reach is not None
    pixels, around = autoencoder.reach
    factor = config.factor

    middle = pixels // factor + 2
    x = torch.rand(1, 3, factor, factor * 2 * middle, dtype=torch.float64, requires_grad=True)
    autoencoder.encode(x).mean[..., middle].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    first, last = factor * middle, factor * middle + factor - 1
    assert first - seen.min() == pixels
    assert seen.max() - last <= pixels

    z = torch.rand(1, 1, 1, 2 * around + 5, dtype=torch.float64, requires_grad=True)
    middle, farthest = around + 2, 0
    decoded = autoencoder.decode(z)
    for pixel in range(factor * middle, factor * (middle + 1)):
        (gradient,) = torch.autograd.grad(decoded[..., pixel].sum(), z, retain_graph=True)
        reached = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        farthest = max(farthest, int(middle - reached.min()), int(reached.max() - middle))
    assert farthest == around


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        TinyAutoencoderConfig().build().encode(torch.zeros(1, 3, 12, 12))


def test_by_default_it_is_that_of_stable_diffusion() -> None:
    autoencoder = TinyAutoencoderConfig().build()
    assert isinstance(autoencoder, TinyAutoencoder)
    assert (autoencoder.factor, autoencoder.latent_channels, autoencoder.reach) == (8, 4, (145, 19))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder_blocks": (1, 3)}, "a number for each level"),
        ({"encoder_blocks": (1, 3, 3, -1)}, "0 or more"),
        ({"encoder_channels": 0}, "1 or more"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyAutoencoderConfig(**given)
