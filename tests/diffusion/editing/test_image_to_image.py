from __future__ import annotations

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.editing.image_to_image import SDEdit
from diffusion.noise import Schedule
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from tests.diffusion.exact import SCHEDULES, correlated


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_nothing_changes_at_0_and_everything_at_1(schedule: Schedule):
    exact, sampler = correlated(schedule), Euler(steps=5)
    noise, latents = torch.randn(2, 4, 1, 2, 3, dtype=torch.float64)
    assert SDEdit(sampler=sampler, strength=0.0)(exact, noise, latents, Conditioning()).equal(latents)
    redrawn = SDEdit(sampler=sampler, strength=1.0)(exact, noise, latents, Conditioning())
    assert redrawn.equal(sampler(exact, noise, Conditioning()))


@pytest.mark.parametrize("strength", [0.05, 0.37, 0.8])
def test_it_is_the_flow_from_where_the_strength_says(strength: float):
    """Of a Gaussian in closed form; 0.05 of 12 steps is between two rungs, and is not rounded to one."""
    exact = correlated()
    noise, latents = torch.randn(2, 4, 1, 2, 3, dtype=torch.float64)
    start = (1 - strength) * latents + strength * noise
    edited = SDEdit(sampler=Heun(steps=60), strength=strength)(exact, noise, latents, Conditioning())
    torch.testing.assert_close(edited, exact.flow(start, strength, 0.0), rtol=0, atol=5e-3)


def test_the_stronger_the_less_is_left_of_the_image():
    exact, count = correlated(), 500
    noise, latents = torch.randn(count, 1, 2, 3, dtype=torch.float64), exact.sample(count)

    def distance(strength: float) -> float:
        edit = SDEdit(sampler=Heun(steps=8), strength=strength)
        return float((edit(exact, noise, latents, Conditioning()) - latents).square().mean())

    distances = [distance(strength) for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert distances == sorted(distances)
    of_independent_draws = 2 * float(exact.covariance.diagonal().mean())
    assert distances[-1] == pytest.approx(of_independent_draws, rel=0.15)


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strengths_are_shares(strength: float):
    with pytest.raises(ValueError, match="between 0 and 1"):
        SDEdit(sampler=Euler(steps=5), strength=strength)
