from __future__ import annotations

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from tests.diffusion.exact import gaussian
from tests.diffusion.samplers.order import order


def test_second_order():
    assert order(Heun) == pytest.approx(2.0, abs=0.15)


def test_better_than_euler_at_the_same_cost():
    std = torch.full((1, 2, 2), 0.3, dtype=torch.float64)
    noise = torch.randn(64, 1, 2, 2, dtype=torch.float64)
    truth = 2.0 + std * noise
    heun = Heun(steps=18)(gaussian(2.0, std), noise, Conditioning()) - truth
    euler = Euler(steps=35)(gaussian(2.0, std), noise, Conditioning()) - truth
    assert heun.square().mean() < euler.square().mean() / 4


def test_two_calls_a_step_but_the_last():
    exact, calls = gaussian(0.0, torch.ones(1, 1, 1)), []

    class Counted:
        schedule = exact.schedule

        def __call__(self, x_t: torch.Tensor, t: float, conditioning: Conditioning) -> torch.Tensor:
            calls.append(t)
            return exact(x_t, t, conditioning)

    Heun(steps=4)(Counted(), torch.randn(1, 1, 1, 1), Conditioning())
    assert calls == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
