from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

from diffusion.denoiser import Denoiser
from diffusion.inversion import invert
from diffusion.noise import VariancePreserving
from diffusion.preconditioning import Velocity
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.dpm import DPM
from diffusion.samplers.heun import Heun
from diffusion.samplers.runge_kutta import RungeKutta
from diffusion.samplers.sampler import Sampler
from diffusion.samplers.spacing import Karras
from diffusion.samplers.unipc import UniPC
from tests.diffusion.exact import SCHEDULES, correlated, two_classes
from tests.diffusion.samplers.oracle import NOTHING, start, timeless


@pytest.mark.parametrize("exact", [correlated, two_classes])
@pytest.mark.parametrize("schedule", ["rectified flow", "VP linear", "VE"])
def test_there_and_back_in_fifty_steps(exact: Any, schedule: str):
    denoiser = exact(SCHEDULES[schedule])
    latents = denoiser.sample(64)
    heun = Heun(steps=50, spacing=Karras(low=0.01))
    error = heun(denoiser, invert(heun, denoiser, latents, NOTHING), NOTHING) - latents
    assert error.square().mean().sqrt() < 1e-2


@pytest.mark.parametrize(
    ("sampler", "bound"),
    [
        (Heun(steps=50), 2e-3),
        (RungeKutta(steps=25), 1e-5),
        (DPM(steps=50, spacing=Karras()), 0.02),
        (UniPC(steps=50, spacing=Karras()), 0.02),
        (DDIM(steps=200), 0.02),
    ],
)
def test_the_noise_is_that_of_the_exact_flow(sampler: Sampler, bound: float):
    exact = correlated()
    latents = exact.sample(64)
    noise = exact.flow(latents, 0.0, 1.0)
    error = invert(sampler, exact, latents, NOTHING) - noise
    assert error.square().mean().sqrt() < bound
    assert noise.flatten().var() == pytest.approx(1.0, abs=0.2)


def test_same_as_diffusers():
    """Whose scheduler tells the network the time that a step leads to: seen only by one that looks at it."""
    chain = VariancePreserving.scaled_linear()
    scheduler: Any = DDIMInverseScheduler(
        trained_betas=chain.betas,
        clip_sample=False,
        prediction_type="v_prediction",
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(20)
    x = start()
    for timestep in scheduler.timesteps:
        told = torch.zeros(len(x))
        x = scheduler.step(timeless(x, told, NOTHING), timestep, x, return_dict=False)[0]
    before = (scheduler.timesteps - 50).clamp(min=0)
    times = ((torch.stack([before[0], *scheduler.timesteps]) + 1) / 1000).tolist()
    ours = DDIM(steps=20).solve(Denoiser(timeless, chain, Velocity()), start(), times, NOTHING)
    torch.testing.assert_close(ours, x, rtol=2e-5, atol=2e-5)


def test_a_way_with_noise_on_it_cannot_be_gone_back():
    with pytest.raises(ValueError, match="DDPM draws noise"):
        invert(DDPM(steps=2), two_classes(), torch.randn(1, 2, 1, 1), NOTHING)
