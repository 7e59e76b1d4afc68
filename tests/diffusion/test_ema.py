from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion.ema import EMA, exponent


def test_known_widths():
    """Karras et al., 2024, Section 3.1: gamma = 16.97 and 6.94 for 5 % and 10 %."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_width_is_the_spread_of_the_profile(width: float):
    gamma = exponent(width)
    tau = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    profile = tau**gamma / (tau**gamma).sum()
    mean = (profile * tau).sum()
    assert (profile * (tau - mean) ** 2).sum().sqrt().item() == pytest.approx(width, rel=1e-4)


@pytest.mark.parametrize("width", [0.0, 0.3, -0.1])
def test_impossible_widths_are_refused(width: float):
    with pytest.raises(ValueError, match="ema"):
        exponent(width)


@pytest.mark.parametrize("batch", [1, 48])
def test_average_has_the_exact_profile(batch: int):
    """(gamma + 1) / T^(gamma + 1) times the integral of tau^gamma theta(tau), theta piecewise constant."""
    steps, width = 50, 0.1
    path = torch.randn(steps, 7, dtype=torch.float64)
    module = nn.Linear(7, 1, bias=False)
    ema = EMA(module, width=width)
    for n, weights in enumerate(path):
        module.weight.data = weights[None].float()
        ema.update(module, images_seen=(n + 1) * batch, batch=batch)

    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (exponent(width) + 1)
    torch.testing.assert_close(ema.averages["weight"][0].double(), edges.diff() @ path, rtol=1e-5, atol=1e-6)


def test_the_first_step_forgets_the_initial_weights():
    module = nn.Linear(3, 1)
    ema = EMA(module, width=0.1)
    nn.init.constant_(module.weight, 5.0)
    ema.update(module, images_seen=8, batch=8)
    assert ema.averages["weight"].tolist() == [[5.0, 5.0, 5.0]]


def test_bf16_weights_are_averaged_in_fp32():
    module = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    ema = EMA(module, width=0.25)
    for n in range(64):  # around 1, bf16 is too coarse for the average to move
        nn.init.constant_(module.weight, 1.0 if n % 2 else 1.0078125)
        ema.update(module, images_seen=n + 1, batch=1)
    average = ema.averages["weight"]
    assert average.dtype == torch.float32
    assert 1.001 < average.item() < 1.007
    copy = nn.Linear(1, 1, bias=False)
    ema.copy_to(copy)
    assert copy.weight.equal(average)


def test_averages_of_another_network_are_refused():
    with pytest.raises(ValueError, match="another network"):
        EMA(nn.Linear(2, 2), width=0.1).load_state_dict(
            EMA(nn.Linear(2, 2, bias=False), width=0.1).state_dict()
        )
