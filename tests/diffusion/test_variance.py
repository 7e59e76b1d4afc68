"""The bound of a Gaussian, whose every term is known."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.denoiser import On
from diffusion.guidance import Autoguidance, ClassifierFree
from diffusion.losses import MinSNR, denoising
from diffusion.noise import Schedule, VariancePreserving
from diffusion.preconditioning import Clean
from diffusion.tiling import Tiled
from diffusion.variance import LearnedVariance, hybrid, learned, posterior, vlb
from tests.diffusion.exact import SCHEDULES, gaussian

NOTHING = Conditioning()
STD = torch.tensor([0.3, 0.7, 1.0, 0.5], dtype=torch.float64).reshape(1, 2, 2)


def exact(schedule: Schedule, v: float | None, chain: int) -> LearnedVariance:
    """The exact mean of N(1, STD^2), and v; or the v that makes the step's variance exact too."""
    answers = gaussian(1.0, STD, schedule)

    def network(x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in schedule(t))
        clean = answers(x * torch.hypot(alpha, sigma), t, conditioning)
        if v is not None:
            return torch.cat([clean, torch.full_like(clean, v)], dim=1)
        s = (t - 1 / chain).clamp(min=0)
        s = s.where(s > 0.5 / chain, 0.0)
        first = (s == 0).reshape(-1, 1, 1, 1)
        a, b = (c.reshape(-1, 1, 1, 1) for c in schedule(s))
        true = posterior((alpha, sigma), (a, b))
        of_next = posterior(schedule.at(2 / chain), schedule.at(1 / chain))
        spread = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # of x given x_t
        variance = true.small + true.take**2 * spread
        low = torch.where(first, of_next.small, true.small).log()
        return torch.cat([clean, 2 * (variance.log() - low) / (true.large.log() - low) - 1], dim=1)

    return LearnedVariance(network, schedule, Clean())


def every_time(chain: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each time of a chain with four (x, z) that have the moments of data and noise, so that the mean of
    squares over them is exact."""
    t = torch.arange(1, chain + 1, dtype=torch.float64) / chain
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    x, z = (signs[:, k].repeat(chain).reshape(-1, 1, 1, 1).expand(-1, *STD.shape) for k in (0, 1))
    return 1.0 + STD * x, z.contiguous(), t.repeat_interleave(4)


@pytest.mark.parametrize("schedule", ["VP linear", "VP cosine", "rectified flow"])
def test_with_the_exact_variance_the_bound_is_tight(schedule: str):
    """Sum of all terms = H(x | x_1): nothing is lost on the way, whatever the schedule."""
    chain, path = 1000, SCHEDULES[schedule]
    terms = vlb(exact(path, None, chain), *every_time(chain), NOTHING, chain=chain)
    alpha, sigma = path.at(1.0)
    entropy = (2 * math.pi * math.e * STD**2).log() / 2 - (1 + (alpha / sigma * STD) ** 2).log() / 2
    assert float(terms.reshape(chain, 4).mean(1).sum()) == pytest.approx(float(entropy.mean()), rel=1e-6)


@pytest.mark.parametrize("v", [-1.0, 0.3, 1.0, 1.5])
def test_terms_are_the_divergence_of_two_gaussians(v: float):
    chain, path = 50, VariancePreserving.linear(50)
    terms = vlb(exact(path, v, chain), *every_time(chain), NOTHING, chain=chain).reshape(chain, 4).mean(1)
    for n in (2, 10, 50):
        here, there = path.at(n / chain), path.at((n - 1) / chain)
        _, take, small, large = posterior(here, there)
        beta = path.betas[n - 1]
        assert large == pytest.approx(beta)
        assert small == pytest.approx(beta * there[1] ** 2 / here[1] ** 2)
        spread = STD**2 * here[1] ** 2 / (here[0] ** 2 * STD**2 + here[1] ** 2)
        model = math.exp((v + 1) / 2 * math.log(large) + (1 - v) / 2 * math.log(small))
        p = torch.distributions.Normal(torch.zeros_like(STD), math.sqrt(model))
        q = torch.distributions.Normal(take * spread.sqrt(), math.sqrt(small))
        expected = torch.distributions.kl_divergence(q, p).mean()
        assert float(terms[n - 1]) == pytest.approx(float(expected), rel=1e-9)


def test_the_bound_teaches_the_variance_and_not_the_mean():
    raw = torch.zeros(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    denoiser = LearnedVariance(lambda x, t, _: raw, VariancePreserving.linear(), Clean())
    x, z = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([1, 2, 500, 1000]) / 1000
    (gradient,) = torch.autograd.grad(vlb(denoiser, x, z, t, NOTHING).sum(), raw)
    assert (gradient[:, 0] == 0).all()
    assert (gradient[:, 1] != 0).all()


def test_the_hybrid_is_the_simple_loss_and_a_thousandth_of_the_bound():
    chain, path = 100, VariancePreserving.linear(100)
    denoiser, (x, z, t) = exact(path, 0.2, chain), every_time(chain)
    simple = denoising(denoiser, x, z, t, NOTHING, MinSNR())
    bound = chain * vlb(denoiser, x, z, t, NOTHING, chain=chain)
    together = hybrid(denoiser, x, z, t, NOTHING, MinSNR(), chain=chain)
    torch.testing.assert_close(together, simple + 0.001 * bound)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_posterior_is_bayes_rule(schedule: str):
    """q(x_s | x_t, x) is q(x_t | x_s) q(x_s | x) / q(x_t | x), in precisions; the large one for N(0, 1)."""
    path = SCHEDULES[schedule]
    for t, s in ((0.9, 0.8), (0.5, 0.1), (0.3, 0.29)):
        (alpha, sigma), (a, b) = path.at(t), path.at(s)
        gain = alpha / a
        added = sigma**2 - (gain * b) ** 2
        keep, take, small, large = posterior((alpha, sigma), (a, b))
        assert small == pytest.approx(1 / (1 / b**2 + gain**2 / added), rel=1e-6)
        assert keep == pytest.approx(small * gain / added, rel=1e-6)
        assert take == pytest.approx(small * a / b**2, rel=1e-6)
        assert large == pytest.approx(1 / (1 / (a * a + b * b) + gain**2 / added), rel=1e-6)


def test_the_network_is_called_once_through_any_guidance():
    calls = []

    def network(x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        calls.append(len(x))
        assert conditioning.label is not None
        return torch.cat([x, x.sin() + conditioning.label.reshape(-1, 1, 1, 1)], dim=1)

    path = VariancePreserving.linear()
    inner = LearnedVariance(network, path, Clean())
    told = Conditioning(label=torch.tensor([0, 1]), classes=2)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    clean, share = inner.answer(x, 0.5, told)
    free = ClassifierFree(inner, 2.0)
    for denoiser in (free, Tiled(free, size=4, overlap=1), Autoguidance(free, 1.5, worse=inner)):
        answer, own = learned(denoiser, x, 0.5, told)
        torch.testing.assert_close(answer, denoiser(x, 0.5, told))
        torch.testing.assert_close(own, share)
    stretched = On(inner, SCHEDULES["VE"])
    time = stretched.schedule.time_at(path.place(0.5))
    scale = sum(stretched.schedule.at(time)) / sum(path.at(0.5))
    torch.testing.assert_close(learned(stretched, scale * x, time, told), (clean, share))
    assert calls[:4] == [2, 4, 4, 4]
    with pytest.raises(ValueError, match="tiles"):
        learned(Tiled(inner, size=2, overlap=1), x, 0.5, told)


def test_a_network_without_a_second_half_is_refused():
    denoiser = LearnedVariance(lambda x, t, _: x, VariancePreserving.linear(), Clean())
    with pytest.raises(ValueError, match="twice as many"):
        denoiser(torch.randn(1, 3, 2, 2), 0.5, NOTHING)
