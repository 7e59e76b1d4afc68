from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig, UNetConfig
from diffusion.networks.unet import AttentionBlock, UNet

SMALL = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, stem=2)
SEEING = replace(SMALL, attention=(1,), size_conditioning=True)
GOLDEN = [
    [-0.04131055, -0.11540314, -0.05951009, -0.35101858],
    [0.50531799, 0.76358366, -0.21674871, -0.24500498],
]


def network(config: UNetConfig = SMALL, **fields: int | None) -> UNet:
    """With random weights everywhere, so that everything has an effect."""
    torch.manual_seed(0)
    made = config.build(channels=3, size=16, **fields)
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
        text=torch.randn(count, 4, 6, generator=draw),
        mask=torch.arange(4) < torch.tensor([[2], [4]])[:count],
        size=1000 * torch.rand(count, 6, generator=draw),
    )


@pytest.mark.parametrize("config", [SMALL, SEEING])
def test_a_new_network_answers_zero(config: UNetConfig) -> None:
    made = config.build(channels=3, size=16, low_channels=3, text_width=6)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(made(x, torch.rand(2), told(2)), torch.zeros_like(x))


@pytest.mark.parametrize("config", [SMALL, SEEING])
@pytest.mark.parametrize("size", [(16, 16), (17, 30), (5, 4)])
def test_any_size_goes(config: UNetConfig, size: tuple[int, int]) -> None:
    x = torch.randn(1, 3, *size)
    assert network(config)(x, torch.rand(1), Conditioning()).shape == x.shape


@pytest.mark.parametrize("kind", ["time", "pooled", "label", "low", "level", "text", "size"])
def test_every_condition_matters(kind: str) -> None:
    made = network(SEEING, classes=2, text_width=6, low_channels=3)
    x, t = torch.randn(2, 3, 16, 16), torch.rand(2)
    first = told(2)
    if kind == "time":
        other = made(x, t / 2, first)
    else:
        tensor = getattr(first, kind)
        changed = 1 - tensor if kind == "label" else tensor.roll(1, -1) + 0.3
        other = made(x, t, replace(first, **{kind: changed}))
    assert not torch.allclose(made(x, t, first), other, atol=1e-4)


@pytest.mark.parametrize("config", [SMALL, replace(SEEING, attention=(0, 1), blocks=2)])
def test_every_parameter_is_trained(config: UNetConfig) -> None:
    made = network(config, classes=2, text_width=6, low_channels=3)
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


def test_golden() -> None:
    """What a snapshot of old draws: outputs of the network before it could have attention."""
    made = network(classes=2, text_width=6, low_channels=3)
    torch.manual_seed(1)
    answer = made(torch.randn(2, 3, 16, 16), torch.rand(2), told(2))
    torch.testing.assert_close(answer[:, 1, 3, ::5], torch.tensor(GOLDEN), atol=1e-5, rtol=1e-5)


def test_with_attention_it_sees_everything() -> None:
    made = network(SEEING)
    x = torch.randn(1, 3, 64, 64)
    changed = x.clone()
    changed[..., 60:, 60:] += 5
    with torch.no_grad():
        before, after = made(x, torch.ones(1), Conditioning()), made(changed, torch.ones(1), Conditioning())
    assert (before != after)[..., :24, :24].float().mean() > 0.95


def test_attention_starts_as_if_it_were_not_there() -> None:
    """At the same residual blocks: the skip alone, in each level and in the middle."""
    torch.manual_seed(0)
    seeing, blind = (c.build(channels=3, size=16, text_width=6) for c in (SEEING, SMALL))
    seeing.load_state_dict(blind.state_dict(), strict=False)
    for made in (seeing, blind):
        torch.nn.init.constant_(made.last.weight, 0.1)
    x, t = torch.randn(2, 3, 16, 16), torch.rand(2)
    want = blind(x, t, told(2))
    assert want.abs().max() > 0.1
    torch.testing.assert_close(seeing(x, t, told(2)), want)


def test_padded_tokens_change_nothing() -> None:
    made, x, t, given = network(SEEING, text_width=6), torch.randn(2, 3, 16, 16), torch.rand(2), told(2)
    assert given.text is not None
    assert given.mask is not None
    text = torch.cat([given.text, torch.full((2, 3, 6), 1e3)], dim=1)
    text[0, 2:] = -1e3
    mask = torch.cat([given.mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(
        made(x, t, replace(given, text=text, mask=mask)), made(x, t, given), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (64, 1), (96, 2), (128, 2), (160, 4)])
def test_heads_are_at_most_64_wide(width: int, heads: int) -> None:
    assert AttentionBlock(width, None).attention.heads == heads


def test_attention_at_a_level_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="not among the 2"):
        replace(SMALL, attention=(2,)).build(channels=3, size=16)


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
