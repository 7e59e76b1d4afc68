from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.config import DiTConfig, UNetConfig
from diffusion.networks.layers import Norm, RMSNorm


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "patch", "millions"),
    [
        ("S/2", 384, 12, 6, 2, 33),
        ("B/1", 768, 12, 12, 1, 130),
        ("L/4", 1024, 24, 16, 4, 458),
        ("XL/2", 1152, 28, 16, 2, 675),
    ],
)
def test_named_sizes_are_the_papers(
    name: str, width: int, depth: int, heads: int, patch: int, millions: float
) -> None:
    """Parameters as in Peebles & Xie, 2023, Table 4: with 1,000 classes, on 32 x 32 x 4 latents."""
    config = DiTConfig.named(name)
    assert (config.width, config.depth, config.heads, config.patch) == (width, depth, heads, patch)
    with torch.device("meta"):
        network = config.build(channels=4, size=32, classes=1000)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(("wrong", "close"), [("b/2", "B/2"), ("XL2", "XL/2"), ("S/8", "S/")])
def test_another_name_is_refused_with_the_nearest(wrong: str, close: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{close}.*XL/4"):
        DiTConfig.named(wrong)


@pytest.mark.parametrize(
    ("depth", "route"), [(12, (2, 8)), (28, (2, 24)), (24, (2, 20)), (6, (1, 4)), (3, (0, 2)), (1, (0, 1))]
)
def test_tokens_skip_the_papers_blocks(depth: int, route: tuple[int, int]) -> None:
    config = DiTConfig(depth=depth, width=16, heads=2)
    assert config.routed == route
    network = config.build(channels=1, size=2)
    assert (network.route_start, network.route_end) == route


def test_a_route_of_ones_own() -> None:
    network = DiTConfig(depth=4, width=16, heads=2, route=(1, 2)).build(channels=1, size=2)
    assert (network.route_start, network.route_end) == (1, 2)


def test_the_norm_is_everywhere() -> None:
    for kind, other in ((Norm, RMSNorm), (RMSNorm, Norm)):
        config = DiTConfig(width=16, depth=1, heads=2, norm="layer" if kind is Norm else "rms")
        kinds = {type(module) for module in config.build(channels=1, size=2, text_width=4).modules()}
        assert kind in kinds
        assert other not in kinds


def test_size_conditioning_is_a_choice() -> None:
    x, t, told = torch.randn(1, 1, 2, 2), torch.rand(1), Conditioning(size=torch.ones(1, 6))
    for chosen in (False, True):
        network = DiTConfig(width=16, depth=1, heads=2, size_conditioning=chosen).build(channels=1, size=2)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        assert torch.equal(network(x, t, told), network(x, t, Conditioning())) != chosen


def test_fields_that_came_later_may_be_left_out_of_records() -> None:
    """So that what was trained before they came is found again."""
    first = {"kind", "width", "depth", "heads", "patch", "mlp_ratio", "cross_every"}
    first |= {"channels", "multipliers", "blocks", "stem"}
    for config in (DiTConfig(), UNetConfig()):
        later = {f.name for f in fields(config)} - first
        assert later
        assert all(f.metadata["added"] == f.default for f in fields(config) if f.name in later)
