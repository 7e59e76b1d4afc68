from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion.autoencoders.spatial import SpatialAutoencoder
from diffusion.config import SpatialAutoencoderConfig

SMALL = SpatialAutoencoderConfig(channels=(8, 16), groups=4, blocks=1)


def test_deviations_stay_finite_for_any_weights() -> None:
    autoencoder = SMALL.build()
    assert isinstance(autoencoder, SpatialAutoencoder)
    assert autoencoder.encoder.conv_out.bias is not None
    torch.nn.init.constant_(autoencoder.encoder.conv_out.bias, 1e6)
    assert autoencoder.encode(torch.rand(2, 3, 8, 8)).std.isfinite().all()


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    autoencoder = SMALL.build()
    moments = autoencoder.encode(torch.rand(2, 3, 8, 8))
    latents = moments.sample(torch.randn_like(moments.mean))
    (autoencoder.decode(latents) - torch.rand(2, 3, 8, 8)).square().mean().backward()
    for name, parameter in autoencoder.named_parameters():
        # Keys move all of a place's logits equally: their bias has no effect.
        if not name.endswith("to_k.bias"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        SMALL.build().encode(torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": (8, 12), "groups": 8}, "multiples of groups"),
        ({"channels": ()}, "is empty"),
        ({"blocks": 0}, "1 or more"),
        ({"attention": (4,)}, "levels beyond 0 to 3"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpatialAutoencoderConfig(**given)
