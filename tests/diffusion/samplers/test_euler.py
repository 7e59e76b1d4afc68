from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from diffusion.conditioning import Conditioning
from diffusion.denoiser import Denoiser
from diffusion.samplers.euler import Euler
from diffusion.samplers.spacing import Even
from tests.diffusion.samplers.order import order


def test_first_order():
    assert order(Euler) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_same_as_diffusers(shift: float):
    def network(x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return torch.sin(3 * x) + t.reshape(-1, 1, 1, 1) * x.roll(1, dims=-1)

    noise = torch.randn(2, 3, 4, 4)
    ours = Euler(steps=20, spacing=Even(shift=shift))(Denoiser(network), noise, Conditioning())

    scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20).tolist())
    x = noise
    for step in scheduler.timesteps:
        velocity = network(x, (step / 1000).expand(2), Conditioning())
        x = scheduler.step(velocity, step, x, return_dict=False)[0]
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)
