from __future__ import annotations

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig, UNetConfig
from diffusion.networks.unet import UNet

SMALL = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, stem=2)


def network(**fields: int | None) -> UNet:
    """With random weights everywhere, so that everything has an effect."""
    torch.manual_seed(0)
    made = SMALL.build(channels=3, size=16, **fields)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def told(count: int, size: int = 16) -> Conditioning:
    draw = torch.Generator().manual_seed(3)
    return Conditioning(
        pooled=torch.randn(count, 6, generator=draw),
        label=torch.arange(count) % 2,
        classes=2,
        low=torch.randn(count, 3, size, size, generator=draw),
        level=torch.linspace(0, 0.5, count),
    )


def test_a_new_network_answers_zero() -> None:
    made = SMALL.build(channels=3, size=16, low_channels=3)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(made(x, torch.rand(2), told(2)), torch.zeros_like(x))


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (5, 4)])
def test_any_size_goes(size: tuple[int, int]) -> None:
    x = torch.randn(1, 3, *size)
    assert network()(x, torch.rand(1), Conditioning()).shape == x.shape


@pytest.mark.parametrize("kind", ["time", "pooled", "label", "low", "level"])
def test_every_condition_matters(kind: str) -> None:
    made, x, t = network(classes=2, text_width=6, low_channels=3), torch.randn(2, 3, 16, 16), torch.rand(2)
    first, second = told(2), told(2)
    if kind == "time":
        other = made(x, t / 2, first)
    else:
        tensor = getattr(second, kind)
        object.__setattr__(second, kind, 1 - tensor if kind == "label" else tensor + 0.3)
        other = made(x, t, second)
    assert not torch.allclose(made(x, t, first), other, atol=1e-4)


def test_every_parameter_is_trained() -> None:
    made = network(classes=2, text_width=6, low_channels=3)
    made(torch.randn(2, 3, 16, 16), torch.rand(2), told(2)).square().mean().backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


def test_it_sees_its_surroundings_only() -> None:
    """A change far away changes nothing here, whatever the image's size: no norm looks at the whole."""
    made = network()
    x = torch.randn(1, 3, 64, 64)
    changed = x.clone()
    changed[..., 60:, 60:] += 5
    with torch.no_grad():
        before, after = made(x, torch.ones(1), Conditioning()), made(changed, torch.ones(1), Conditioning())
    assert torch.equal(before[..., :24, :24], after[..., :24, :24])
    assert not torch.equal(before[..., 60:, 60:], after[..., 60:, 60:])


@pytest.mark.parametrize("config", [SMALL, DiTConfig(width=16, depth=1, heads=2, patch=4)])
def test_an_upscaler_without_a_small_image_says_so(config: UNetConfig | DiTConfig) -> None:
    made = config.build(channels=3, size=16, low_channels=3)
    with pytest.raises(ValueError, match="needs the small image"):
        made(torch.randn(1, 3, 16, 16), torch.rand(1), Conditioning())


def test_a_transformer_sees_the_small_image_and_its_level() -> None:
    torch.manual_seed(0)
    made = DiTConfig(width=16, depth=1, heads=2, patch=4).build(channels=3, size=16, low_channels=3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, t, first, second = torch.randn(2, 3, 16, 16), torch.rand(2), told(2), told(2)
    answer = made(x, t, first)
    assert answer.shape == x.shape
    object.__setattr__(second, "level", first.level + 0.4)
    assert not torch.allclose(answer, made(x, t, second), atol=1e-4)
