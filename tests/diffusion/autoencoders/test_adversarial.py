from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.autoencoders.adversarial import (
    LARGEST,
    Reconstruction,
    adaptive_weight,
    adversarial_losses,
    last_layer,
)
from diffusion.autoencoders.discriminator import contest, deception
from diffusion.autoencoders.kl import kl_divergence
from diffusion.config import AutoencoderConfig, IdentityAutoencoderConfig, KLAutoencoderConfig
from diffusion.config.adversarial import DiscriminatorConfig
from diffusion.config.autoencoders import SpatialAutoencoderConfig, TinyAutoencoderConfig
from diffusion.config.deep_compression import DeepCompressionAutoencoderConfig, levels
from diffusion.latents import Moments

SMALL = KLAutoencoderConfig(latent_channels=2, channels=8, multipliers=(1,), stem=4, blocks=1)
KINDS: list[AutoencoderConfig] = [
    SMALL,
    SpatialAutoencoderConfig(channels=(8, 16), blocks=1, groups=4, latent_channels=2),
    TinyAutoencoderConfig(
        encoder_channels=8, decoder_channels=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1)
    ),
    DeepCompressionAutoencoderConfig(
        latent_channels=4,
        head_width=4,
        encoder=levels((8, 8, 16), (1, 1, 1), attention=1),
        decoder=levels((8, 8, 16), (1, 1, 1), attention=1),
    ),
]


def module(**fields: Any) -> Reconstruction:
    torch.manual_seed(0)
    against = DiscriminatorConfig(**{"channels": 8, "layers": 2, **fields})
    made = Reconstruction(SMALL.build(), against.build())
    with torch.no_grad():  # or the reconstruction's gradient would be of a network that says nothing
        for p in made.parameters():
            p += 0.05 * torch.randn_like(p)
    return made


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 16, 16, generator=chance) * 2 - 1
    return images, torch.randn(count, 2, 4, 4, generator=chance)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_one_backward_gives_what_two_losses_and_two_networks_do(kind: Any, adaptive: bool) -> None:
    """Beside the usual form: the autoencoder's loss through a discriminator that stands still, then the
    discriminator's on detached reconstructions, with the weight of Esser et al.'s equation 7."""
    images, noise = batch()
    network = module()

    def pixels(made: Tensor) -> Tensor:
        return (made - images).abs().flatten(1).mean(1)

    made, moments, judged = network(images, noise, judged=True)
    assert judged is not None
    last = last_layer(network.autoencoder)
    weighed = adversarial_losses(made, judged, pixels, last=last, kind=kind, weight=0.7, adaptive=adaptive)
    (weighed.losses + 0.1 * kl_divergence(moments)).sum().backward()
    found = gradients(network)
    torch.testing.assert_close(weighed.losses, pixels(made))

    network.zero_grad()
    made, moments, _ = network(images, noise)
    discriminator: Any = network.discriminator
    discriminator.requires_grad_(False)
    lost, deceived = pixels(made), deception(kind, discriminator(made))
    scale = torch.tensor(0.7)
    if adaptive:
        wanted, opposed = (
            torch.autograd.grad(one.mean(), last, retain_graph=True)[0].norm() for one in (lost, deceived)
        )
        scale = 0.7 * wanted / (opposed + 1e-6)
    torch.testing.assert_close(weighed.figures["adversarial_weight"], scale)
    (lost + scale.detach() * deceived + 0.1 * kl_divergence(moments)).sum().backward()
    discriminator.requires_grad_(True)
    contest(kind, discriminator(images), discriminator(made.detach())).sum().backward()
    by_hand = gradients(network)
    assert found.keys() == by_hand.keys()
    for name, gradient in by_hand.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_before_it_is_asked_the_discriminator_is_not_called() -> None:
    images, noise = batch()
    network = module()
    network.discriminator.forward = None  # type: ignore[assignment, union-attr]
    made, _, judged = network(images, noise)
    assert judged is None
    made.sum().backward()
    assert not any(name.startswith("discriminator") for name in gradients(network))


def test_the_weight_is_bounded() -> None:
    """A discriminator without an opinion has no gradient to divide by."""
    images, noise = batch()
    network = module()
    made, _, _ = network(images, noise)
    last = last_layer(network.autoencoder)
    weight = adaptive_weight(made, last, torch.ones_like(made), torch.zeros_like(made))
    assert weight.item() == LARGEST
    assert adaptive_weight(made, last, torch.zeros_like(made), torch.ones_like(made)).item() == 0


@pytest.mark.parametrize("config", KINDS, ids=lambda c: c.kind)
def test_the_last_layer_of_every_kind_makes_pixels(config: AutoencoderConfig) -> None:
    torch.manual_seed(0)
    autoencoder = config.build()
    weight = last_layer(autoencoder)
    assert weight.shape[0] % 3 == 0
    made = autoencoder.decode(torch.randn(2, config.latent_channels, 4, 4))
    (gradient,) = torch.autograd.grad(made.sum(), weight)
    assert gradient.abs().sum() > 0


def test_pixels_as_latents_have_no_last_layer() -> None:
    with pytest.raises(ValueError, match="nothing to deceive"):
        last_layer(IdentityAutoencoderConfig().build())


def test_without_a_spread_there_is_no_divergence() -> None:
    """Deterministic autoencoders: finite, and with a finite gradient."""
    mean = torch.randn(2, 3, 4, 4, requires_grad=True)
    std = torch.zeros(2, 3, 4, 4, requires_grad=True)
    found = kl_divergence(Moments(mean=mean, std=std))
    assert found.tolist() == [0, 0]
    found.sum().backward()
    assert mean.grad is not None
    assert std.grad is not None
    assert mean.grad.isfinite().all()
    assert std.grad.isfinite().all()
    # and with one it is torch's own
    spread = torch.rand(2, 3, 4, 4) + 0.1
    normal = torch.distributions.Normal
    truth = torch.distributions.kl_divergence(normal(mean, spread), normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl_divergence(Moments(mean=mean, std=spread)), truth)
