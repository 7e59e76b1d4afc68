from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler

from diffusion.denoiser import Denoiser
from diffusion.noise import RectifiedFlow, VarianceExploding, VariancePreserving
from diffusion.preconditioning import EDM, FlowVelocity, Velocity
from diffusion.samplers.dpm import DPM
from diffusion.samplers.spacing import Karras
from tests.diffusion.exact import gaussian
from tests.diffusion.samplers.oracle import NOTHING, network, start, theirs, timeless


@pytest.mark.parametrize("steps", [6, 25])
def test_same_as_diffusers_on_edms_path(steps: int):
    scheduler: Any = EDMDPMSolverMultistepScheduler(solver_order=2, sigma_data=0.5)
    scheduler.set_timesteps(steps)
    denoiser = Denoiser(network, VarianceExploding(), EDM(data_std=0.5))
    ours = DPM(steps=steps, spacing=Karras())(denoiser, start(), NOTHING)
    x = theirs(scheduler, 80 * start(), told=lambda timestep: timestep)
    torch.testing.assert_close(ours, x, rtol=2e-5, atol=2e-5)


def test_same_as_diffusers_on_a_chain_with_karras_sigmas():
    chain = VariancePreserving.scaled_linear()
    scheduler: Any = DPMSolverMultistepScheduler(
        trained_betas=chain.betas,
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas
    spacing = Karras(low=float(sigmas[-2]), high=float(sigmas[0]))
    times = spacing(chain, 20)
    ours = DPM(steps=20).solve(Denoiser(timeless, chain, Velocity()), start(), times, NOTHING)
    torch.testing.assert_close(ours, theirs(scheduler, start(), timeless), rtol=2e-5, atol=2e-5)


def test_same_as_diffusers_on_the_straight_path():
    scheduler: Any = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    scheduler.set_timesteps(20)
    denoiser = Denoiser(timeless, RectifiedFlow(), FlowVelocity())
    ours = DPM(steps=20).solve(denoiser, start(), scheduler.sigmas.double().tolist(), NOTHING)
    torch.testing.assert_close(ours, theirs(scheduler, start(), timeless), rtol=2e-5, atol=2e-5)


def test_after_pure_noise_an_answer_linear_in_the_signal_is_followed_exactly():
    """x̂ = mean + c alpha / sigma with any slope c, which no other step order 1 would follow."""

    class Linear:
        schedule = RectifiedFlow()

        def __call__(self, x_t: torch.Tensor, t: float, conditioning: object) -> torch.Tensor:
            return torch.full_like(x_t, 2.0 + 3.0 * (1 - t) / t)

    noise = torch.randn(2, 1, 1, 1, dtype=torch.float64)
    x = DPM(steps=2).solve(Linear(), noise, [1.0, 0.8, 0.5], NOTHING)
    # d(x / sigma) = x̂ d(alpha / sigma), but for the first step, of which nothing is known yet
    first, second = 0.2 / 0.8, 0.5 / 0.5
    expected = noise + 2.0 * first + 2.0 * (second - first) + 1.5 * (second**2 - first**2)
    torch.testing.assert_close(x / 0.5, expected, rtol=1e-12, atol=1e-12)


def test_from_pure_noise_to_clean_in_one_step():
    exact = gaussian(2.0, torch.ones(1, 1, 1, dtype=torch.float64))
    noise = torch.randn(3, 1, 1, 1, dtype=torch.float64)
    assert DPM(steps=1)(exact, noise, NOTHING).equal(torch.full_like(noise, 2.0))
