from __future__ import annotations

import pytest
import torch
from scipy import linalg

from diffusion.metrics.frechet import FeatureStatistics, frechet_distance, frechet_estimate


def features(count: int, width: int, *, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(width) + 0.2 * torch.randn(width, width, generator=torch.Generator().manual_seed(width))
    return mean + std * torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix.double()


def by_scipy(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = x.T.cov().numpy(), y.T.cov().numpy()
    root = linalg.sqrtm(a @ b)
    return float((x.mean(0) - y.mean(0)).square().sum() + (a + b - 2 * root.real).trace())


def population(mean: float, std: float, width: int) -> FeatureStatistics:
    """Statistics that are exactly those of N(mean, std^2 I)."""
    first = torch.full((width,), 1000 * mean, dtype=torch.float64)
    second = 999 * std**2 * torch.eye(width, dtype=torch.float64) + torch.outer(first, first) / 1000
    return FeatureStatistics(count=1000, first=first, second=second)


def test_gaussians_in_closed_form():
    """N(0, I) and N(0.7, 1.5^2 I) in 8 dimensions: 8 x 0.7^2 + 8 x (1.5 - 1)^2."""
    distance = frechet_distance(population(0.0, 1.0, 8), population(0.7, 1.5, 8))
    assert distance == pytest.approx(5.92, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(50, 40), (50, 7), (6, 7)])
def test_same_as_scipys_matrix_root_with_few_and_with_many_samples(n: int, m: int):
    x, y = features(n, 12, seed=0), features(m, 12, seed=1, mean=0.5, std=1.3)
    expected = by_scipy(x, y)
    statistics = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    assert statistics == pytest.approx(expected, rel=1e-6)
    assert frechet_estimate(x, y, groups=3).value == pytest.approx(expected, rel=1e-6)
    assert frechet_estimate(x, y, groups=3).value == pytest.approx(statistics, rel=1e-9)


def test_nothing_lies_between_a_set_and_itself():
    x = features(30, 8, seed=0)
    assert frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(x)) == pytest.approx(0, abs=1e-12)


def test_parts_add_up_to_the_whole():
    x = features(30, 5, seed=0, mean=3.0)
    merged = FeatureStatistics.of(x[:4]) + FeatureStatistics.of(x[4:])
    torch.testing.assert_close(merged.mean, x.mean(0))
    torch.testing.assert_close(merged.covariance, x.T.cov())
    assert merged.count == 30


def test_fp32_features_are_summed_in_fp64():
    x = features(200, 4, seed=0, mean=1000.0).float()
    torch.testing.assert_close(FeatureStatistics.of(x).covariance, x.double().T.cov(), rtol=1e-6, atol=1e-8)


def test_stderr_is_the_spread_over_repetitions():
    estimates = [
        frechet_estimate(features(120, 4, seed=2 * n), features(90, 4, seed=2 * n + 1, mean=0.6))
        for n in range(80)
    ]
    spread = torch.tensor([e.value for e in estimates]).std().item()
    stated = torch.tensor([e.stderr for e in estimates]).square().mean().sqrt().item()
    assert stated == pytest.approx(spread, rel=0.3)
    assert all(e.low < e.value < e.high for e in estimates)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(population(0.0, 1.0, 2), FeatureStatistics.of(torch.zeros(1, 2)))
    with pytest.raises(ValueError, match="at least two"):
        frechet_estimate(features(2, 3, seed=0), features(50, 3, seed=1))
