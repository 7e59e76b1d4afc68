from __future__ import annotations

import pytest
import torch

from diffusion.noise import VarianceExploding
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from diffusion.samplers.langevin import AnnealedLangevin, corrected
from diffusion.samplers.predictor_corrector import PredictorCorrector
from diffusion.samplers.sampler import Sampler
from diffusion.samplers.spacing import Karras
from tests.diffusion.exact import SCHEDULES, ExactMixture, two_classes
from tests.diffusion.samplers.oracle import NOTHING

ROWS = 4000


def normal(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, 2, 1, 1, generator=generator, dtype=torch.float64)


def marginal(exact: ExactMixture, t: float, seed: int = 1000) -> torch.Tensor:
    return exact.schedule.perturb(exact.sample(ROWS, seed=seed), normal(seed + 1), t)


def assert_is_the_marginal(x: torch.Tensor, exact: ExactMixture, t: float) -> None:
    """Mean and covariance within three standard errors, the latter's from the sample's own products."""
    (alpha, sigma), (mean, covariance) = exact.schedule.at(t), exact.moments()
    rows, expected = x.flatten(1), alpha**2 * covariance + sigma**2 * torch.eye(2)
    offset = rows - alpha * mean
    assert (offset.mean(0).abs() < 3 * (expected.diagonal() / ROWS).sqrt()).all()
    products = offset[:, :, None] * offset[:, None]
    assert ((products.mean(0) - expected).abs() < 3 * products.std(0) / ROWS**0.5).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_corrections_leave_the_marginal_as_it_is(schedule: str):
    exact = two_classes(SCHEDULES[schedule])
    t = exact.schedule.time_at(0.4)
    x = corrected(exact, marginal(exact, t), t, NOTHING, normal, number=0, corrections=40, ratio=0.1)
    assert_is_the_marginal(x, exact, t)


@pytest.mark.parametrize("schedule", ["rectified flow", "VP cosine", "VE"])
@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(steps=1),
        DDIM(steps=1, eta=1.0),
        DDIM(steps=1, eta=0.5),
        Heun(steps=40, churn=15.0, noise_scale=1.0),
        PredictorCorrector(predictor=Euler(steps=1), ratio=0.1),
    ],
    ids=lambda s: type(s).__name__,
)
def test_sdes_carry_a_marginal_to_the_next(sampler: Sampler, schedule: str):
    exact = two_classes(SCHEDULES[schedule])
    places = torch.linspace(0.6, 0.3, 41).double().tolist()
    times = [exact.schedule.time_at(u) for u in places]
    x = sampler.solve(exact, marginal(exact, times[0]), times, NOTHING, normal)
    assert sampler.stochastic
    assert_is_the_marginal(x, exact, times[-1])


def test_corrections_mend_what_is_wrong():
    """From the right mean and a spread that is too small by half, back to the marginal."""
    exact = two_classes()
    (alpha, _), (mean, _) = exact.schedule.at(0.5), exact.moments()
    centre = alpha * mean.reshape(2, 1, 1)
    x = centre + (marginal(exact, 0.5) - centre) / 2
    assert_is_the_marginal(
        corrected(exact, x, 0.5, NOTHING, normal, number=0, corrections=150, ratio=0.25), exact, 0.5
    )


def test_it_is_the_authors_algorithm():
    """Song and Ermon, 2019, Algorithm 1: x + e / 2 score + sqrt(e) z, e = epsilon sigma^2 / sigma_L^2."""
    exact = two_classes(VarianceExploding(sigma_max=5.0))
    sampler = AnnealedLangevin(steps=4, corrections=3, spacing=Karras(low=0.1))
    times = sampler.spacing(exact.schedule, 4)
    x, number = 5 * normal(99), 0
    for t in times[1:-1]:
        sigma = exact.schedule.at(t)[1]
        size = 4 * 0.22**2 * sigma**2
        for _ in range(3):
            x = x + size / 2 * exact.score(x, t, NOTHING) + size**0.5 * normal(number)
            number += 1
    expected = exact(x, times[-2], NOTHING)
    torch.testing.assert_close(sampler(exact, normal(99), NOTHING, normal), expected, rtol=1e-9, atol=1e-9)
