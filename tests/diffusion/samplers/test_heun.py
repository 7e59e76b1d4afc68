from __future__ import annotations

import itertools

import torch

from diffusion.conditioning import Conditioning
from diffusion.noise import VarianceExploding
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from diffusion.samplers.runge_kutta import RungeKutta
from diffusion.samplers.spacing import Karras
from tests.diffusion.exact import gaussian, two_classes

NOTHING = Conditioning()


def test_better_than_euler_at_the_same_cost():
    std = torch.full((1, 2, 2), 0.3, dtype=torch.float64)
    noise = torch.randn(64, 1, 2, 2, dtype=torch.float64)
    truth = 2.0 + std * noise
    heun = Heun(steps=18)(gaussian(2.0, std), noise, NOTHING) - truth
    euler = Euler(steps=35)(gaussian(2.0, std), noise, NOTHING) - truth
    assert heun.square().mean() < euler.square().mean() / 4


def test_the_trapezoid_on_the_straight_path_is_better_than_the_authors():
    """Theirs is over sigma / alpha; on their own ladder, at equal calls."""
    exact, generator = two_classes(VarianceExploding()), torch.Generator().manual_seed(0)
    noise = torch.randn(128, 2, 1, 1, generator=generator, dtype=torch.float64)

    def authors(steps: int) -> torch.Tensor:
        times = Karras()(exact.schedule, steps)
        x = exact.schedule.at(times[0])[1] * noise
        for t, s in itertools.pairwise(times):
            sigma, lower = exact.schedule.at(t)[1], exact.schedule.at(s)[1]
            slope = (x - exact(x, t, NOTHING)) / sigma
            ahead = x + (lower - sigma) * slope
            if lower:
                slope = (slope + (ahead - exact(ahead, s, NOTHING)) / lower) / 2
            x = x + (lower - sigma) * slope
        return x

    truth = RungeKutta(steps=100, spacing=Karras())(exact, noise, NOTHING)
    for steps in (5, 9, 18):
        ours = Heun(steps=steps, spacing=Karras())(exact, noise, NOTHING) - truth
        error = ours.flatten(1).norm(dim=1).median()
        assert error < 0.5 * (authors(steps) - truth).flatten(1).norm(dim=1).median()


def test_churn_is_the_authors_algorithm():
    """Karras et al., 2022, Algorithm 2, lines 4 to 8, with all of their limits met on the way."""
    path, steps = VarianceExploding(), 6
    exact = two_classes(path)
    sampler = Heun(steps=steps, spacing=Karras(high=10.0), churn=1.5, churned=(0.05, 5.0), noise_scale=1.01)
    generator = torch.Generator().manual_seed(0)
    fresh = torch.randn(steps, 4, 2, 1, 1, generator=generator, dtype=torch.float64)
    x = start = 10 * torch.randn(4, 2, 1, 1, generator=generator, dtype=torch.float64)
    times = sampler.spacing(path, steps)
    for n, (t, s) in enumerate(itertools.pairwise(times)):
        sigma = path.at(t)[1]
        gamma = min(1.5 / steps, 2**0.5 - 1) if 0.05 <= sigma <= 5.0 else 0.0
        raised = sigma * (1 + gamma)
        x = x + (raised**2 - sigma**2) ** 0.5 * 1.01 * fresh[n]
        x = Heun(steps=1).step(exact, x, path.time_at(raised / (1 + raised)), s, NOTHING)
    assert sampler.stochastic
    assert not Heun(steps=1).stochastic
    ours = sampler.solve(exact, start, times, NOTHING, fresh.__getitem__)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)
