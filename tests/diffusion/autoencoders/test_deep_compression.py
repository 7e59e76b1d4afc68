from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from diffusion.autoencoders.efficientvit import LinearAttention
from diffusion.config import DeepCompressionAutoencoderConfig, DeepCompressionLevel

SMALL = DeepCompressionAutoencoderConfig(
    latent_channels=4,
    head_width=4,
    encoder=(
        DeepCompressionLevel(channels=8, blocks=1),
        DeepCompressionLevel(channels=8, blocks=1, attention=True, scales=(3,)),
    ),
    decoder=(
        DeepCompressionLevel(channels=8, blocks=1),
        DeepCompressionLevel(channels=8, blocks=1, attention=True, scales=(3,)),
    ),
)


def level(channels: int, blocks: int = 1, **given: Any) -> DeepCompressionLevel:
    return DeepCompressionLevel(channels=channels, blocks=blocks, **given)


def test_sums_over_all_places_are_made_in_32_bits_under_autocast() -> None:
    """In bf16 the sum of more than 256 ones stays 256, and the mean of equal values is off."""
    attention = LinearAttention(4, 4, (), "rms")
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out):
            layer.weight.copy_(torch.eye(4))
    seen: list[torch.Tensor] = []
    attention.to_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention(torch.ones(1, 4, 40, 40))
    torch.testing.assert_close(seen[0].float(), torch.ones(1, 40, 40, 4))


def test_training_leaves_the_statistics_of_batches_alone() -> None:
    """What an image becomes depends on no other, nor on how many workers share a batch."""
    torch.manual_seed(0)
    batch = (level(8, norm="batch"), level(8, norm="batch", attention=True))
    autoencoder = dataclasses.replace(SMALL, decoder=batch).build().train()
    latents = torch.rand(2, 4, 4, 4)
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    assert sum("running" in name for name in before) == 4
    decoded = autoencoder.decode(latents)
    torch.testing.assert_close(autoencoder.decode(latents[:1]), decoded[:1])
    torch.testing.assert_close(autoencoder.eval().decode(latents), decoded)
    for name, tensor in autoencoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    autoencoder = SMALL.build()
    (
        autoencoder.decode(autoencoder.encode(torch.rand(2, 3, 8, 8)).mean) - torch.rand(2, 3, 8, 8)
    ).square().mean().backward()
    for name, parameter in autoencoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        SMALL.build().encode(torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ((level(8),), "two levels or more"),
        ((level(8), level(8, 0)), "blocks in each but the finest"),
        ((level(8), level(24)), "divide four times"),
        ((level(8), level(4, attention=True)), "multiples of head_width"),
        ((level(8), level(4)), "encoder_shortcut needs"),
        ((level(8), level(8), level(8)), "equally many levels"),
        ((level(8), level(8, norm="batch")), "norm: rms"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(encoder: tuple[DeepCompressionLevel, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepCompressionAutoencoderConfig(
            latent_channels=8, head_width=8, encoder=encoder, decoder=(level(8), level(8))
        )
