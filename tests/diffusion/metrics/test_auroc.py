from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from diffusion.metrics.auroc import auroc


def scores(shift: float, seed: int, n: int = 120, m: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator), torch.randn(m, generator=generator) + shift


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_the_same_as_the_u_statistic_with_midranks(digits: int):
    """Rounded scores have ties, of which scipy has midranks."""
    normal, anomalous = (s.double().round(decimals=digits) for s in scores(0.7, seed=digits))
    u = stats.mannwhitneyu(anomalous.numpy(), normal.numpy()).statistic
    assert auroc(normal, anomalous, resamples=2).value == pytest.approx(u / (120 * 80), abs=1e-12)


def test_what_is_known_of_it():
    normal, anomalous = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert auroc(normal, anomalous).value == 1
    assert auroc(anomalous, normal).value == 0
    assert auroc(torch.ones(5), torch.ones(4)).value == 0.5
    assert auroc(normal.exp(), anomalous.exp()).value == 1


def test_two_gaussians():
    """Phi(shift / sqrt 2)."""
    found = auroc(*scores(1.0, seed=0, n=4000, m=4000))
    expected = stats.norm.cdf(1 / math.sqrt(2))
    assert found.value == pytest.approx(expected, abs=3 * found.stderr)
    assert found.low < expected < found.high


def test_the_interval_covers_and_is_as_wide_as_it_should_be():
    found = [auroc(*scores(1.0, seed=s), resamples=200, seed=s) for s in range(100)]
    expected = stats.norm.cdf(1 / math.sqrt(2))
    assert 88 <= sum(f.low < expected < f.high for f in found) <= 100
    spread = torch.tensor([f.value for f in found]).std()
    assert sum(f.stderr for f in found) / 100 == pytest.approx(float(spread), rel=0.25)


def test_nothing_to_rank_is_refused():
    with pytest.raises(ValueError, match="give some of both"):
        auroc(torch.zeros(0), torch.zeros(3))
    with pytest.raises(ValueError, match="not a number"):
        auroc(torch.tensor([0.0, torch.nan]), torch.zeros(3))
