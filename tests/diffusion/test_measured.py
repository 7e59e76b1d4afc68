from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.guidance import ClassifierFree
from diffusion.measured import Measured
from diffusion.noise import RectifiedFlow, Schedule, Time
from diffusion.operators import Mask, Matrix
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from diffusion.samplers.sampler import Sampler
from tests.diffusion.exact import SCHEDULES, ExactGaussian, correlated, two_classes

Exactly = functools.partial(Measured, damping=0.0, steps=4)
KNOWN = torch.tensor([True, False, False, True, False, True]).reshape(1, 1, 2, 3)
MATRIX = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def expected(exact: ExactGaussian, x_t: Tensor, t: float, measured: Tensor, noise: float) -> Tensor:
    """E[x | x_t, MATRIX x + noise n = measured], a row at a time, with the covariances written out."""
    alpha, sigma = exact.schedule.at(t)
    eye = torch.eye(6, dtype=x_t.dtype)
    rows = []
    for row, clean, y in zip(x_t, exact(x_t, t, Conditioning()), measured, strict=True):
        _, covariance = exact.posterior(alpha / sigma * eye, row.flatten() / sigma, 1.0)
        rows.append(ExactGaussian(clean, covariance).posterior(MATRIX, y, noise)[0].reshape(1, 2, 3))
    return torch.stack(rows)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_exact_on_a_gaussian(schedule: Schedule, t: float, noise: float):
    exact = correlated(schedule)
    alpha, sigma = schedule.at(t)
    x_t = alpha * exact.sample(4) + sigma * torch.randn(4, 1, 2, 3, dtype=torch.float64)
    measured = torch.randn(4, 3, dtype=torch.float64)
    wrapped = Exactly(exact, Matrix(MATRIX, (1, 2, 3)), measured, noise, last=0.9999)
    with torch.no_grad():
        answer = wrapped(x_t, t, Conditioning())
    assert not answer.requires_grad
    torch.testing.assert_close(answer, expected(exact, x_t, t, measured, noise), rtol=1e-6, atol=1e-6)


def test_at_pure_noise_it_is_the_posterior_of_the_data():
    """Where x_t tells nothing: to the share of signal that there is at the last place that is asked."""
    exact = correlated()
    z = torch.randn(64, 1, 2, 3, dtype=torch.float64)
    measured = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    mean, _ = exact.posterior(MATRIX, measured, 0.1)

    def error(last: float) -> float:
        operator = Matrix(MATRIX, (1, 2, 3))
        answer = Exactly(exact, operator, measured.expand(64, 3), 0.1, last=last)(z, 1.0, Conditioning())
        return float((answer.flatten(1) - mean).square().mean().sqrt())

    assert error(0.99) < 0.01
    assert error(0.999) < error(0.99) / 5


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("t", [1e-6, 1e-3, 1.0])
def test_single_precision_stands_the_ends_of_the_path(t: float, noise: float):
    exact = correlated()
    single = ExactGaussian(exact.mean.float(), exact.covariance.float())
    clean = single.sample(16)
    wrapped = Exactly(single, Mask(KNOWN), torch.where(KNOWN, clean, 0), noise)
    x_t = RectifiedFlow().perturb(clean, torch.randn_like(clean), t)
    answer = wrapped(x_t, t, Conditioning())
    off = torch.where(KNOWN, answer - clean, 0).abs().max()
    assert off < 2e-3


SEEN = torch.tensor([1.0, 0.4, 0.5], dtype=torch.float64)


def inpainted(sampler: Sampler, noise: Tensor) -> Tensor:
    """Draws of `correlated` where SEEN is known with noise 0.2, [b d]."""
    measured = torch.zeros(len(noise), 1, 2, 3, dtype=torch.float64).masked_scatter(
        KNOWN, SEEN.expand(len(noise), 3)
    )
    return sampler(Exactly(correlated(), Mask(KNOWN), measured, 0.2), noise, Conditioning()).flatten(1)


def truth() -> tuple[Tensor, Tensor]:
    return correlated().posterior(torch.eye(6, dtype=torch.float64)[KNOWN.flatten()], SEEN, 0.2)


@pytest.mark.parametrize("sampler", [Euler(steps=100), Heun(steps=30)])
def test_any_sampler_draws_from_the_posterior(sampler: Sampler):
    """An ODE of a Gaussian is affine: noise of exactly zero mean and unit covariance shows both moments."""
    axes = torch.eye(6, dtype=torch.float64) * 6**0.5
    drawn = inpainted(sampler, torch.cat([axes, -axes]).reshape(12, 1, 2, 3))
    mean, covariance = truth()
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        drawn.T.cov(correction=0), covariance, rtol=0, atol=0.03 * float(covariance.max())
    )


def test_draws_have_the_posteriors_moments_within_three_standard_errors():
    noise = torch.randn(1000, 1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = inpainted(Heun(steps=30), noise)
    mean, covariance = truth()
    variance = covariance.diagonal()
    assert ((drawn.mean(0) - mean) / (variance / 1000).sqrt()).abs().max() < 3
    error = ((variance[:, None] * variance + covariance**2) / 1000).sqrt()
    assert ((drawn.T.cov() - covariance) / error).abs().max() < 3


def test_a_row_has_a_time_of_its_own():
    exact, times = correlated(), [0.1, 0.6, 0.995, 1.0]
    x_t, measured = torch.randn(4, 1, 2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    operator = Matrix(MATRIX, (1, 2, 3))
    together = Measured(exact, operator, measured, 0.3)(
        x_t, torch.tensor(times, dtype=torch.float64), Conditioning()
    )
    for n, t in enumerate(times):
        alone = Measured(exact, operator, measured[n : n + 1], 0.3)(x_t[n : n + 1], t, Conditioning())
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-6, atol=1e-6)


@dataclass
class Function:
    """Any function of x_t as a denoiser that notes how often it is called."""

    answer: Callable[[Tensor], Tensor]
    schedule: Schedule = field(default_factory=RectifiedFlow)
    calls: int = 0

    def __call__(self, x_t: Tensor, t: Time, conditioning: Conditioning) -> Tensor:
        self.calls += 1
        return self.answer(x_t)


def test_one_call_and_a_fixed_number_of_backward_passes():
    backward = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            backward.append(len(grad))
            return grad

    denoiser = Function(Noted.apply)
    Measured(denoiser, Mask(KNOWN), torch.zeros(5, 1, 2, 3), steps=3)(
        torch.randn(5, 1, 2, 3), 0.5, Conditioning()
    )
    assert denoiser.calls == 1
    assert backward == [5, 5, 5]


def test_rows_without_anything_to_solve_keep_their_answer():
    """One agrees with its measurement already; of the other, the derivative is no covariance."""
    x_t = torch.randn(1, 1, 2, 3, dtype=torch.float64)
    agrees = Measured(Function(lambda x: x), Mask(KNOWN), torch.where(KNOWN, x_t, 0))
    assert agrees(x_t, 0.5, Conditioning()).equal(x_t)
    negative = Exactly(Function(lambda x: -x), Mask(KNOWN), torch.where(KNOWN, x_t, 0))
    assert negative(x_t, 0.5, Conditioning()).equal(-x_t)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_damping_adds_to_the_covariance(noise: float):
    """C + damping sigma^2 / alpha I; without noise the measurement comes out all the same."""
    exact, t = correlated(), 0.6
    x_t, measured = torch.randn(4, 1, 2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    operator, eye = Matrix(MATRIX, (1, 2, 3)), torch.eye(6, dtype=torch.float64)
    answer = Measured(exact, operator, measured, noise, steps=6, damping=0.5)(x_t, t, Conditioning())
    _, covariance = exact.posterior(0.4 / 0.6 * eye, x_t[0].flatten() / 0.6, 1.0)
    damped = covariance + 0.5 * 0.6**2 / 0.4 * eye
    for row, clean, y in zip(answer, exact(x_t, t, Conditioning()), measured, strict=True):
        expected, _ = ExactGaussian(clean, damped).posterior(MATRIX, y, noise)
        torch.testing.assert_close(row.flatten(), expected, rtol=1e-6, atol=1e-6)
    if not noise:
        torch.testing.assert_close(operator.apply(answer), measured)


def test_damped_it_stands_a_derivative_that_is_no_covariance():
    """That of a network is not symmetric, and has negative eigenvalues: as large here as one was seen to."""
    generator = torch.Generator().manual_seed(0)
    wrong = torch.randn(64, 64, generator=generator, dtype=torch.float64) / 64
    x_t = torch.randn(32, 1, 8, 8, generator=generator, dtype=torch.float64)
    known = torch.rand(1, 1, 8, 8, generator=generator) < 0.5

    network = Function(lambda x: (x.flatten(1) @ wrong).reshape(x.shape))
    measured = torch.where(known, x_t, 0)

    def moved(damping: float) -> float:
        wrapped = Measured(network, Mask(known), measured, damping=damping, steps=8)
        return float((wrapped(x_t, 0.8, Conditioning()) - network.answer(x_t)).square().mean().sqrt())

    assert moved(0.0) > 3
    assert moved(0.25) < 1


def test_guidance_goes_around_it_and_keeps_what_is_known():
    exact = two_classes()
    x_t, measured = torch.randn(4, 2, 1, 1, dtype=torch.float64), torch.randn(4, 2, 1, 1, dtype=torch.float64)
    known = torch.tensor([True, False]).reshape(1, 2, 1, 1).repeat(4, 1, 1, 1)
    one, every = exact.conditioning(1, 4), exact.conditioning(2, 4)
    wrapped = Measured(exact, Mask(known), torch.where(known, measured, 0))
    guided = ClassifierFree(wrapped, 3.0)(x_t, 0.4, one)
    torch.testing.assert_close(guided[:, 0], measured[:, 0])
    better, worse = wrapped(x_t, 0.4, one), wrapped(x_t, 0.4, every)
    torch.testing.assert_close(guided, worse + 3 * (better - worse))
