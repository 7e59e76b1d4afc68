from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion.anomaly import (
    GaussianFit,
    MeanDeviation,
    denoising_errors,
    score_norms,
    shrunk_correlation,
)
from diffusion.conditioning import Conditioning
from diffusion.likelihood import Rademacher, log_likelihood
from diffusion.metrics.auroc import auroc
from diffusion.noise import Schedule
from diffusion.randomness import Draws
from tests.diffusion.exact import SCHEDULES, gaussian, two_classes

STD = torch.tensor([[0.3, 1.0], [0.5, 2.0]], dtype=torch.float64).reshape(2, 1, 2)
LEVELS = (0.2, 1.0, 4.0)


def strange(count: int) -> torch.Tensor:
    """Not of `two_classes`, though among them."""
    generator = torch.Generator().manual_seed(9)
    return 0.8 * torch.randn(count, 2, 1, 1, generator=generator, dtype=torch.float64) + 0.3


@pytest.mark.parametrize("name", ["rectified flow", "VP linear", "VE"])
def test_a_normal_sample_is_denoised_with_the_least_error(name: str):
    """s^2 l^2 / (s^2 + l^2) a latent."""
    exact = gaussian(0.5, STD, SCHEDULES[name])
    x = exact.sample(1000)
    maps = denoising_errors(exact, x, LEVELS, Conditioning(), Draws(0, np.arange(1000), (2, 1, 2)))
    assert maps.shape == (1000, 3, 1, 2)
    for n, level in enumerate(LEVELS):
        expected = (STD**2 * level**2 / (STD**2 + level**2)).mean(0)
        torch.testing.assert_close(maps[:, n].mean(0), expected, rtol=0.15, atol=0)


def test_the_noise_is_a_samples_own():
    exact, positions = two_classes(), np.arange(6)
    x, every = exact.sample(6), exact.conditioning(2, 6)

    def maps(rows: slice) -> torch.Tensor:
        draws = Draws(1, positions[rows], (2, 1, 1))
        return denoising_errors(exact, x[rows], LEVELS, every[rows], draws)

    torch.testing.assert_close(torch.cat([maps(slice(0, 2)), maps(slice(2, 6))]), maps(slice(None)))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_score_norms(schedule: Schedule):
    """The score of a Gaussian with added noise is (mean - x) / (s^2 + l^2)."""
    exact = gaussian(0.5, STD, schedule)
    x = exact.sample(5)
    norms = score_norms(exact, x, LEVELS, Conditioning())
    expected = [((0.5 - x) * level / (STD**2 + level**2)).flatten(1).norm(dim=1) for level in LEVELS]
    torch.testing.assert_close(norms, torch.stack(expected, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [MeanDeviation, GaussianFit])
def test_a_percentile_is_a_midrank(kind: type[MeanDeviation | GaussianFit]):
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.cat([values, values[:10]])
    calibration = kind.fit(values)
    scores = calibration.score(values)
    assert calibration.normals.equal(scores.sort().values)
    expected = [stats.percentileofscore(scores.numpy(), s, kind="mean") for s in scores.tolist()]
    assert calibration.percentile(scores).tolist() == pytest.approx(expected)
    beyond = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    assert calibration.percentile(beyond).tolist() == [0, 100]


def test_deviations_have_no_unit():
    values = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new = torch.randn(5, 3, dtype=torch.float64)
    unit, offset = torch.tensor([0.1, 1.0, 30.0]).double(), torch.tensor([5.0, 0.0, -2.0]).double()
    for kind in (MeanDeviation, GaussianFit):
        torch.testing.assert_close(
            kind.fit(values).score(new), kind.fit(values * unit + offset).score(new * unit + offset)
        )
    z = (new - values.mean(0)) / values.std(0)
    torch.testing.assert_close(MeanDeviation.fit(values).score(new), z.mean(1))


def test_of_gaussian_numbers_the_fit_is_a_chi_square():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.4, 0.0], [0.5, 0.5, 0.2]], dtype=torch.float64)
    values = torch.randn(8000, 3, generator=generator, dtype=torch.float64) @ mixing.T
    scores = GaussianFit.fit(values[:4000]).score(values[4000:])
    assert stats.kstest(scores.numpy(), stats.chi2(3).cdf).pvalue > 0.01


def test_correlations_are_shrunk_by_their_uncertainty():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    z[:, 1] = 0.8 * z[:, 0] + 0.6 * z[:, 1]
    z = (z - z.mean(0)) / z.std(0)
    torch.testing.assert_close(shrunk_correlation(z), z.T.corrcoef(), rtol=0, atol=0.005)

    few = torch.randn(12, 30, generator=generator, dtype=torch.float64)
    few = (few - few.mean(0)) / few.std(0)
    shrunk = shrunk_correlation(few)
    assert torch.linalg.eigvalsh(shrunk).min() > 0.1
    eye = torch.eye(30, dtype=torch.float64)
    assert (shrunk - eye).square().sum() < (few.T.corrcoef() - eye).square().sum() / 20


def test_a_heat_map_says_where_the_score_comes_from():
    maps = torch.rand(40, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps *= torch.tensor([1.0, 10.0, 0.1]).double().reshape(3, 1, 1)
    calibration = MeanDeviation.fit(maps.mean((2, 3)))
    odd = maps[:2].clone()
    odd[0, :, 1, 2] *= 5
    heat = calibration.heat(odd)
    torch.testing.assert_close(heat.mean((1, 2)), calibration.score(odd.mean((2, 3))))
    assert heat[0].argmax() == 1 * 5 + 2


def test_the_likelihood_tells_as_much_as_the_exact_one():
    exact, count = two_classes(), 400
    x = torch.cat([exact.sample(count), strange(count)])
    every = exact.conditioning(2, 2 * count)
    probes = Rademacher(0, np.arange(2 * count), (2, 1, 1))
    estimated = -log_likelihood(exact, x, every, probes, steps=30)
    truth = -exact.log_density(x, 0.0, every)
    best = auroc(truth[:count], truth[count:], resamples=2).value
    assert best > 0.7
    assert auroc(estimated[:count], estimated[count:], resamples=2).value == pytest.approx(best, abs=0.01)


def test_every_score_tells_strange_samples():
    exact = two_classes()
    fit, normal, odd = exact.sample(500), exact.sample(500, seed=1), strange(500)

    def errors(x: torch.Tensor, seed: int) -> torch.Tensor:
        draws = Draws(seed, np.arange(len(x)), (2, 1, 1))
        return denoising_errors(exact, x, LEVELS, exact.conditioning(2, len(x)), draws).mean((2, 3))

    def norms(x: torch.Tensor) -> torch.Tensor:
        return score_norms(exact, x, LEVELS, exact.conditioning(2, len(x)))

    by_errors, by_norms = MeanDeviation.fit(errors(fit, 0)), GaussianFit.fit(norms(fit))
    found = [
        auroc(by_errors.score(errors(normal, 1)), by_errors.score(errors(odd, 2))),
        auroc(by_norms.score(norms(normal)), by_norms.score(norms(odd))),
    ]
    assert all(f.low > 0.5 for f in found)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (torch.zeros(1, 2), "two normal samples"),
        (torch.full((3, 2), torch.nan), "finite"),
        (torch.ones(3, 2), "tells nothing"),
    ],
)
def test_what_cannot_be_fitted_is_refused(values: torch.Tensor, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        MeanDeviation.fit(values)
