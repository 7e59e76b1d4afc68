from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion.autoencoders.kl import kl_divergence as kl
from diffusion.config import IdentityAutoencoderConfig, KLAutoencoderConfig
from diffusion.latents import Moments


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        (KLAutoencoderConfig(channels=8, multipliers=(1, 2), stem=2, latent_channels=3), 4),
        (KLAutoencoderConfig(channels=8, multipliers=(1, 1), stem=4, latent_channels=5), 8),
        (KLAutoencoderConfig(channels=8, multipliers=(1, 1, 2), stem=2), 8),
        (KLAutoencoderConfig(channels=8, multipliers=(1,), stem=1), 1),
    ],
)
def test_shapes_and_factor(config: KLAutoencoderConfig, factor: int) -> None:
    autoencoder = config.build()
    moments = autoencoder.encode(torch.randn(2, 3, 32, 16))
    assert config.factor == autoencoder.factor == factor
    assert moments.mean.shape == moments.std.shape == (2, config.latent_channels, 32 // factor, 16 // factor)
    assert autoencoder.latent_channels == config.latent_channels
    assert (moments.std > 0).all()
    assert autoencoder.decode(moments.mean).shape == (2, 3, 32, 16)


def test_sides_must_be_multiples_of_the_factor() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        KLAutoencoderConfig(channels=8).build().encode(torch.zeros(1, 3, 30, 32))


def test_kl_is_that_of_torch() -> None:
    mean, std = torch.randn(3, 4, 2, 2), torch.rand(3, 4, 2, 2) + 0.1
    want = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl(Moments(mean=mean, std=std)), want)


def test_decoding_is_local() -> None:
    """A tile decoded with enough around it is the same as cut from the whole."""
    torch.manual_seed(0)
    autoencoder = KLAutoencoderConfig(
        channels=8, multipliers=(1, 1), stem=2, latent_channels=2, blocks=0
    ).build()
    for parameter in autoencoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    latents = torch.randn(1, 2, 24, 24)
    whole, tile = autoencoder.decode(latents), autoencoder.decode(latents[..., 4:20, 4:20])
    torch.testing.assert_close(tile[..., 24:40, 24:40], whole[..., 40:56, 40:56], atol=1e-5, rtol=1e-5)


def test_overfits_a_few_images() -> None:
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4) * 2 - 1, size=(16, 16), mode="bilinear")
    autoencoder = KLAutoencoderConfig(channels=16, latent_channels=8).build()
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=3e-3)
    for _ in range(150):
        moments = autoencoder.encode(images)
        loss = (autoencoder.decode(moments.sample(torch.randn_like(moments.mean))) - images).abs().mean()
        optimizer.zero_grad()
        (loss + 1e-5 * kl(moments).mean()).backward()
        optimizer.step()
    assert (
        autoencoder.decode(autoencoder.encode(images).mean) - images
    ).abs().mean() < 0.1 * images.abs().mean()


def test_identity_is_identity() -> None:
    autoencoder, images = IdentityAutoencoderConfig().build(image_channels=1), torch.randn(2, 1, 8, 8)
    moments = autoencoder.encode(images)
    assert torch.equal(autoencoder.decode(moments.sample(torch.randn_like(images))), images)
    assert autoencoder.factor == autoencoder.latent_channels == 1
