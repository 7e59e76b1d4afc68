from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.autoencoders.tiling import TiledAutoencoder
from diffusion.config import IdentityAutoencoderConfig, KLAutoencoderConfig
from diffusion.latents import Moments

CONFIGS = [
    KLAutoencoderConfig(channels=4, multipliers=(1, 2), stem=2, latent_channels=2, blocks=1),
    KLAutoencoderConfig(channels=4, multipliers=(1, 1, 2), stem=1, latent_channels=2, blocks=0),
    KLAutoencoderConfig(channels=4, multipliers=(1,), stem=8, latent_channels=2, blocks=2),
]


def kl(config: KLAutoencoderConfig) -> Autoencoder:
    """With weights that let everything through that the layers can see."""
    torch.manual_seed(0)
    autoencoder = config.build()
    for parameter in autoencoder.parameters():
        nn.init.normal_(parameter, std=1 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1)
    return autoencoder.eval().requires_grad_(False)


class Normed(Autoencoder):
    """Sees all of its input, by a norm over space as Stable Diffusion's have."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.latent_channels = 4, 2
        self.sizes: set[tuple[int, ...]] = set()
        self.norm = nn.GroupNorm(1, 4)
        self.down, self.up = nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(2, 3, 4, 4)

    def encode(self, images: Tensor) -> Moments:
        self.sizes.add(tuple(images.shape[-2:]))
        mean, std = self.norm(self.down(images)).chunk(2, dim=1)
        return Moments(mean=mean, std=std.abs())

    def decode(self, latents: Tensor) -> Tensor:
        self.sizes.add(tuple(latents.shape[-2:]))
        return self.up(latents / latents.square().mean((1, 2, 3), keepdim=True).sqrt())


def seen(output: Tensor, given: Tensor) -> tuple[int, int]:
    """First and last column of the input that the output depends on."""
    (gradient,) = torch.autograd.grad(output.abs().sum(), given)
    columns = gradient.abs().sum((0, 1, 2)).nonzero()
    return int(columns[0]), int(columns[-1])


@pytest.mark.parametrize("config", CONFIGS)
def test_reach_is_how_far_gradients_go(config: KLAutoencoderConfig) -> None:
    autoencoder = kl(config).double()
    factor, (around, about) = autoencoder.factor, autoencoder.reach or (0, 0)
    count = 2 * (around // factor + 2) + 1
    middle = count // 2
    images = torch.rand(1, 3, 2 * factor, count * factor, dtype=torch.double, requires_grad=True)
    moments = autoencoder.encode(images)
    first, last = seen(moments.mean[..., middle], images)
    assert (middle * factor - first, last - (middle + 1) * factor + 1) == (around, around)

    latents = torch.rand(1, 2, 2, 2 * about + 5, dtype=torch.double, requires_grad=True)
    middle = about + 2
    first, last = seen(autoencoder.decode(latents)[..., middle * factor : (middle + 1) * factor], latents)
    assert (middle - first, last - middle) == (about, about)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("height", "width"), [(248, 136), (96, 304), (200, 240)])
def test_tiles_give_the_whole_where_the_reach_is_known(
    config: KLAutoencoderConfig, height: int, width: int
) -> None:
    autoencoder = kl(config)
    tiled = TiledAutoencoder(autoencoder, tile=168)
    assert tiled.exact
    images = torch.rand(2, 3, height, width) * 2 - 1
    whole, parts = autoencoder.encode(images), tiled.encode(images)
    torch.testing.assert_close(parts.mean, whole.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.std, whole.std, atol=1e-5, rtol=0)
    latents = torch.randn_like(whole.mean)
    torch.testing.assert_close(tiled.decode(latents), autoencoder.decode(latents), atol=1e-5, rtol=0)


def test_less_around_a_tile_would_show() -> None:
    """What the test before this one can find: a reach that is told too small is a seam."""
    autoencoder = kl(CONFIGS[0])
    assert autoencoder.reach is not None
    images = torch.rand(1, 3, 64, 112) * 2 - 1
    whole = autoencoder.encode(images).mean
    autoencoder.reach = (8, autoencoder.reach[1])
    error = (TiledAutoencoder(autoencoder, tile=64).encode(images).mean - whole).abs().amax((0, 1, 2))
    assert error[12:16].max() > 1e-3 > 100 * error[:8].max()


def test_identity_is_cut_exactly() -> None:
    identity, images = IdentityAutoencoderConfig().build(), torch.randn(1, 3, 37, 53)
    tiled = TiledAutoencoder(identity, tile=16)
    assert torch.equal(tiled.encode(images).mean, images)
    assert torch.equal(tiled.decode(images), images)


def test_a_network_that_sees_everything_is_blended_without_a_seam() -> None:
    """The error against the untiled one is smooth: no larger step at tile edges than elsewhere."""
    torch.manual_seed(0)
    network = Normed().requires_grad_(False)
    tiled = TiledAutoencoder(network, tile=64, overlap=32)
    y, x = torch.meshgrid(torch.linspace(0, 3, 136), torch.linspace(0, 5, 200), indexing="ij")
    images = torch.stack([torch.sin(x), torch.cos(y), torch.sin(x + y)])[None]
    whole, parts = network.encode(images), tiled.encode(images)
    assert whole.mean.shape == parts.mean.shape == (1, 2, 34, 50)
    difference = parts.mean - whole.mean
    steps = difference.diff(dim=-1).abs().amax((0, 1, 2))
    hard = torch.cat([network.encode(images[..., n : n + 40]).mean for n in range(0, 200, 40)], dim=-1)
    jumps = (hard - whole.mean).diff(dim=-1).abs().amax((0, 1, 2))
    assert steps.max() < 0.25 * jumps[9::10].max()
    assert network.decode(parts.mean).shape == tiled.decode(parts.mean).shape == (1, 3, 136, 200)
    assert {size for size in network.sizes if max(size) <= 64} == {(64, 64), (16, 16), (34, 50)}


def test_a_network_that_sees_everything_is_one_that_is_local_where_overlaps_hold_what_it_sees() -> None:
    """Blended as though nothing were known of it, a local network still gives the whole, within 1e-3."""
    autoencoder = kl(CONFIGS[1])
    images = torch.rand(1, 3, 200, 168) * 2 - 1
    whole = autoencoder.encode(images)
    assert autoencoder.reach is not None
    overlap = 4 * autoencoder.reach[0]
    autoencoder.reach = None
    parts = TiledAutoencoder(autoencoder, tile=96, overlap=overlap).encode(images)
    torch.testing.assert_close(parts.mean, whole.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.std, whole.std, atol=1e-5, rtol=1e-5)


def test_what_fits_goes_through_untouched() -> None:
    autoencoder = kl(CONFIGS[0])
    images = torch.rand(1, 3, 64, 48)
    assert torch.equal(
        TiledAutoencoder(autoencoder, tile=64).encode(images).mean, autoencoder.encode(images).mean
    )


def test_tiles_that_cannot_hold_what_the_network_sees_are_blended() -> None:
    tiled = TiledAutoencoder(kl(CONFIGS[0]), tile=32)
    assert not tiled.exact
    assert tiled.encode(torch.rand(1, 3, 40, 72)).mean.isfinite().all()
    with pytest.raises(ValueError, match="cannot overlap by 32 px"):
        TiledAutoencoder(kl(CONFIGS[0]), tile=32, overlap=32)


def test_memory_is_a_tiles() -> None:
    """No call, so no feature map, is larger than a tile."""
    autoencoder = kl(CONFIGS[0])
    given: list[Any] = []
    encode = autoencoder.encode
    autoencoder.encode = lambda images: given.append(images.shape[-2:]) or encode(images)  # type: ignore[method-assign]
    TiledAutoencoder(autoencoder, tile=80).encode(torch.rand(1, 3, 60, 256))
    assert set(given) == {(60, 80)}
