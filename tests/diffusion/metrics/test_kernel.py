from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from diffusion.metrics import kernel
from diffusion.metrics.kernel import kernel_distance


def features(count: int, *, shift: float = 0.0, seed: int = 0, width: int = 16) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def directly(x: np.ndarray, y: np.ndarray) -> float:
    """Bińkowski et al., 2018, with scikit-learn's kernel."""
    xx, yy, xy = (polynomial_kernel(a, b, degree=3, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    return float(sum(within) - 2 * xy.mean())


@pytest.mark.parametrize("rows", [7, 1024])
def test_same_as_the_direct_sum(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "_ROWS", rows)
    x, y = features(40), features(31, shift=0.3, seed=1)
    estimate = kernel_distance(x, y, resamples=10)
    assert estimate.value == pytest.approx(directly(x.double().numpy(), y.double().numpy()), rel=1e-12)


def test_unbiased_where_a_biased_estimate_would_be_far_off():
    values = torch.tensor(
        [
            kernel_distance(features(30, seed=2 * n), features(30, seed=2 * n + 1), resamples=2).value
            for n in range(200)
        ]
    )
    assert abs(values.mean()) < 4 * values.std() / 200**0.5
    assert values.min() < 0 < values.max()


def test_interval_of_equal_distributions_holds_zero_and_of_different_ones_does_not():
    same = kernel_distance(features(200), features(200, seed=1))
    assert same.low < 0 < same.high
    different = kernel_distance(features(200), features(200, shift=0.3, seed=1))
    assert 0 < different.low < different.value < different.high


def test_stderr_is_the_spread_over_repetitions():
    estimates = [
        kernel_distance(features(80, seed=2 * n), features(60, shift=0.5, seed=2 * n + 1), resamples=300)
        for n in range(150)
    ]
    spread = torch.tensor([e.value for e in estimates]).std().item()
    stated = torch.tensor([e.stderr for e in estimates]).mean().item()
    assert stated == pytest.approx(spread, rel=0.25)


def test_the_same_seed_gives_the_same_interval():
    x, y = features(50), features(40, seed=1)
    assert kernel_distance(x, y, resamples=50, seed=3) == kernel_distance(x, y, resamples=50, seed=3)
    assert kernel_distance(x, y, resamples=50, seed=3).low != kernel_distance(x, y, resamples=50, seed=4).low


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(features(1), features(10))
