from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from diffusion.denoiser import Denoiser
from diffusion.noise import VarianceExploding
from diffusion.preconditioning import EDM
from diffusion.samplers.euler import Euler
from diffusion.samplers.spacing import Even, Karras
from tests.diffusion.samplers.oracle import NOTHING, network, start, theirs


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_same_as_diffusers(shift: float):
    scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20).tolist())
    ours = Euler(steps=20, spacing=Even(shift=shift))(Denoiser(network), start(), NOTHING)
    x = start()
    for step in scheduler.timesteps:
        velocity = network(x, (step / 1000).expand(2), NOTHING)
        x = scheduler.step(velocity, step, x, return_dict=False)[0]
    torch.testing.assert_close(ours, x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [6, 25])
def test_same_as_diffusers_on_edms_path(steps: int):
    scheduler: Any = EDMEulerScheduler(sigma_data=0.5)
    scheduler.set_timesteps(steps)
    denoiser = Denoiser(network, VarianceExploding(), EDM(data_std=0.5))
    ours = Euler(steps=steps, spacing=Karras())(denoiser, start(), NOTHING)
    x = theirs(scheduler, 80 * start(), told=lambda timestep: timestep)
    torch.testing.assert_close(ours, x, rtol=2e-5, atol=2e-5)
