from __future__ import annotations

import pytest
import torch

from diffusion.metrics.kernel import kernel_distance
from diffusion.metrics.paired import pair_estimate, pair_matrix

WIDTH = 4


def features(n: int, *, seed: int, error: float = 0.0, m: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Real samples around the means of n conditions, and drawings for them that are off by `error`."""
    draws = torch.Generator().manual_seed(seed)
    means = torch.randn(n, WIDTH, generator=draws)
    real = means + 0.1 * torch.randn(n, WIDTH, generator=draws)
    drawn = means[:, None] + error + 0.1 * torch.randn(n, m, WIDTH, generator=draws)
    return real, drawn


def test_the_definition() -> None:
    real, drawn = features(5, seed=0, error=0.3, m=3)
    x, y = real.double(), drawn.double()

    def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b / WIDTH + 1) ** 3

    total = 0.0
    for i in range(5):
        for j in range(5):
            if i != j:
                yy = sum(k(y[i, a], y[j, b]) for a in range(3) for b in range(3)) / 9
                xy = sum(k(x[i], y[j, b]) + k(x[j], y[i, b]) for b in range(3)) / 3
                total += float(k(x[i], x[j]) + yy - xy) / 20
    assert pair_estimate(pair_matrix(real, drawn), resamples=2).value == pytest.approx(total, rel=1e-9)


def test_perfect_drawings_are_at_zero_without_bias_and_their_interval_is_narrow() -> None:
    """Each drawing resembles the sample of its condition far more than any other: that is no distance."""
    found = [pair_estimate(pair_matrix(*features(40, seed=seed)), resamples=100) for seed in range(40)]
    values = torch.tensor([f.value for f in found])
    assert abs(values.mean()) < 3 * values.std() / 40**0.5
    assert sum(f.low <= 0 <= f.high for f in found) >= 33
    real, drawn = features(40, seed=0)
    apart = kernel_distance(real, drawn.flatten(0, 1), resamples=100)
    assert found[0].high - found[0].low < 0.2 * (apart.high - apart.low)


def test_the_interval_of_a_difference_covers_it() -> None:
    """The true difference of two models, from many conditions, lies in 95 % of the intervals from few."""

    def difference(n: int, seed: int) -> torch.Tensor:
        real, good = features(n, seed=seed, error=0.05)
        _, poor = features(n, seed=seed, error=0.2)
        return pair_matrix(real, poor) - pair_matrix(real, good)

    many = [pair_estimate(difference(150, 1000 + s), resamples=2).value for s in range(10)]
    truth = torch.tensor(many).mean()
    found = [pair_estimate(difference(40, seed), resamples=200) for seed in range(60)]
    assert sum(f.low <= truth <= f.high for f in found) >= 51
    assert all(f.low > 0 for f in found)


def test_what_is_no_pair_is_refused() -> None:
    real, drawn = features(5, seed=0)
    with pytest.raises(ValueError, match="two pairs or more"):
        pair_matrix(real[:1], drawn[:1])
