from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig
from diffusion.networks.dit import DiT
from diffusion.networks.layers import SwiGLU, rotary_angles, rotate

CLASSES, TEXT = 5, 12


def build(**changes: object) -> DiT:
    config = DiTConfig(**{"width": 32, "depth": 2, "heads": 2, "patch": 2, **changes})  # type: ignore[arg-type]
    return config.build(channels=4, size=8, classes=CLASSES, text_width=TEXT)


def awake(network: DiT) -> DiT:
    """Moves every parameter off its start, where zeros hide what the parts do."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def conditioning(count: int = 3, tokens: int = 4) -> Conditioning:
    mask = torch.ones(count, tokens, dtype=torch.bool)
    mask[0, 2:] = False
    return Conditioning(
        text=torch.randn(count, tokens, TEXT),
        mask=mask,
        pooled=torch.randn(count, TEXT),
        label=torch.arange(count) % CLASSES,
        classes=CLASSES,
    )


def test_a_new_network_is_zero_everywhere() -> None:
    x = torch.randn(3, 4, 8, 8)
    assert build()(x, torch.rand(3), conditioning()).abs().max() == 0


def test_padded_tokens_change_nothing() -> None:
    torch.manual_seed(0)
    network, x, t, given = awake(build()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    want = network(x, t, given)

    assert given.text is not None
    assert given.mask is not None
    text = torch.cat([given.text, 100 * torch.randn(3, 5, TEXT)], dim=1)
    text[0, 2:] = 1e3
    mask = torch.cat([given.mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1)
    other = replace(given, text=text, mask=mask)
    torch.testing.assert_close(network(x, t, other), want, atol=1e-5, rtol=1e-5)


def test_every_condition_is_seen() -> None:
    torch.manual_seed(0)
    network, x, t, given = awake(build()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    want = network(x, t, given)
    assert given.text is not None
    assert given.pooled is not None
    assert given.label is not None
    changes = {
        "text": torch.randn_like(given.text),
        "pooled": given.pooled + 1,
        "label": (given.label + 1) % CLASSES,
    }
    for name, value in changes.items():
        assert (network(x, t, replace(given, **{name: value})) - want).abs().max() > 1e-4, name
    assert (network(x, t + 0.1, given) - want).abs().max() > 1e-4


def test_dropped_conditions_do_not_depend_on_what_was_dropped() -> None:
    torch.manual_seed(0)
    network, x, t = awake(build()), torch.randn(3, 4, 8, 8), torch.rand(3)
    torch.testing.assert_close(network(x, t, conditioning().null()), network(x, t, conditioning().null()))


def test_samples_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    network, x, t, given = awake(build()), torch.randn(3, 4, 8, 8), torch.rand(3), conditioning()
    torch.testing.assert_close(
        network(x, t, given)[1:2], network(x[1:2], t[1:2], given[1:2]), atol=1e-5, rtol=1e-5
    )


def test_without_any_condition() -> None:
    network = awake(DiTConfig(width=32, depth=1, heads=2).build(channels=4, size=8))
    nothing = Conditioning(text=None, mask=None, pooled=None, label=None, classes=0)
    assert network(torch.randn(2, 4, 8, 8), torch.rand(2), nothing).shape == (2, 4, 8, 8)
    assert not any("cross" in name or "label" in name for name, _ in network.named_parameters())


def test_patches_and_image_are_inverse() -> None:
    network, x = build(), torch.randn(2, 4, 8, 8)
    tokens = network.patches(x)
    assert tokens.shape == (2, 16, 16)
    torch.testing.assert_close(tokens[0, 5].reshape(4, 2, 2), x[0, :, 2:4, 2:4])
    torch.testing.assert_close(network.image(tokens, 8), x)


def test_rotary_dot_products_see_offsets_only() -> None:
    torch.manual_seed(0)
    rows, columns, width = 5, 6, 16
    angles = rotary_angles(rows, columns, width)
    q, k = (torch.randn(width).expand(1, rows * columns, 1, width) for _ in range(2))
    q, k = (rotate(x, angles.cos(), angles.sin())[0, :, 0].reshape(rows, columns, width) for x in (q, k))
    for down, right in ((0, 0), (1, 0), (0, 2), (2, 3)):
        products = (q[: rows - down, : columns - right] * k[down:, right:]).sum(-1)
        torch.testing.assert_close(products, products[:1, :1].expand_as(products), atol=1e-4, rtol=1e-4)
    assert (q[0, 0] @ k[1, 0] - q[0, 0] @ k[0, 1]).abs() > 1e-3


def test_parameter_count() -> None:
    width, depth, hidden, channels, patch = 64, 3, 160, 4, 2
    network = DiTConfig(width=width, depth=depth, heads=4, mlp_ratio=2.5).build(
        channels=channels, size=8, classes=CLASSES, text_width=TEXT
    )
    head = width // 4
    attention = 4 * width**2 + 2 * head
    block = 2 * attention + width + 3 * width * hidden + 6 * width * (width + 1)
    patches = patch**2 * channels
    ends = (patches + 1) * width + (width + 1) * patches + 2 * width * (width + 1)
    time = (256 + 1) * width + (width + 1) * width
    text = TEXT * width + (TEXT + 1) * width + TEXT + width
    assert (
        sum(p.numel() for p in network.parameters())
        == depth * block + ends + time + (CLASSES + 1) * width + text
    )


def test_cross_every_second_block() -> None:
    network = build(depth=4, cross_every=2)
    assert [block.cross is not None for block in network.blocks] == [True, False, True, False]


def test_swiglu_is_its_equation() -> None:
    layer, x = SwiGLU(8, 16), torch.randn(3, 8)
    gate, value = layer.inner.weight[:16], layer.inner.weight[16:]
    h = x @ gate.T
    torch.testing.assert_close(layer(x), (h * torch.sigmoid(h) * (x @ value.T)) @ layer.outer.weight.T)


def test_a_patch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="choose a patch that divides 8"):
        build(patch=3)
