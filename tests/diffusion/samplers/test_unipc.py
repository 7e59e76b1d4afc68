from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from diffusion.denoiser import Denoiser
from diffusion.noise import RectifiedFlow, VariancePreserving
from diffusion.preconditioning import FlowVelocity, Velocity
from diffusion.samplers.euler import Euler
from diffusion.samplers.spacing import Karras
from diffusion.samplers.unipc import UniPC, _weights
from tests.diffusion.exact import correlated, gaussian
from tests.diffusion.samplers.oracle import NOTHING, start, theirs, timeless


@pytest.mark.parametrize("order", [1, 2, 3])
def test_same_as_diffusers_on_a_chain_with_karras_sigmas(order: int):
    chain = VariancePreserving.scaled_linear()
    scheduler: Any = UniPCMultistepScheduler(
        trained_betas=chain.betas,
        prediction_type="v_prediction",
        solver_order=order,
        use_karras_sigmas=True,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(20)
    spacing = Karras(low=float(scheduler.sigmas[-2]), high=float(scheduler.sigmas[0]))
    denoiser = Denoiser(timeless, chain, Velocity())
    ours = UniPC(steps=20, order=order).solve(denoiser, start(), spacing(chain, 20), NOTHING)
    torch.testing.assert_close(ours, theirs(scheduler, start(), timeless), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_same_as_diffusers_on_the_straight_path(order: int):
    scheduler: Any = UniPCMultistepScheduler(
        solver_order=order, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    scheduler.set_timesteps(20)
    denoiser = Denoiser(timeless, RectifiedFlow(), FlowVelocity())
    times = scheduler.sigmas.double().tolist()
    ours = UniPC(steps=20, order=order).solve(denoiser, start(), times, NOTHING)
    torch.testing.assert_close(ours, theirs(scheduler, start(), timeless), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("h", [-2.0, -1e-6, 1e-6, 0.3, 8.0])
def test_polynomials_are_followed_exactly(h: float):
    """The weighted answers of a polynomial through three points are its mean with density e^lambda."""
    places = np.array([-0.7 * h, -1.9 * h, h])
    weights = np.array(_weights(tuple(places), h))
    grid = np.linspace(0, 1, 200_001)
    density = np.exp(h * (grid - (h > 0)))
    for power in (1, 2, 3):
        truth = np.trapezoid(density * grid**power, grid) / np.trapezoid(density, grid)
        assert weights @ (places / h) ** power == pytest.approx(truth, rel=1e-6)


def test_from_pure_noise_to_clean():
    """Neither end has a finite lambda: one step is Euler's, and two do not correct what started in noise."""
    exact = gaussian(2.0, torch.full((1, 1, 1), 0.5, dtype=torch.float64))
    noise = torch.randn(3, 1, 1, 1, dtype=torch.float64)
    for steps in (1, 2):
        torch.testing.assert_close(
            UniPC(steps=steps)(exact, noise, NOTHING), Euler(steps=steps)(exact, noise, NOTHING)
        )


def test_orders_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="order is 4"):
        UniPC(steps=2, order=4)


def test_no_order_is_lost_at_an_end_that_is_not_clean():
    """From the middle of the path to its middle, up and down: 3 with the correction, 2 if the last step's
    were 1."""
    exact = correlated()
    for t, s in ((0.2, 0.8), (0.8, 0.2)):
        given = exact.flow(exact.sample(32), 0.0, t)
        truth, ladders = exact.flow(given, t, s), (np.linspace(t, s, n).tolist() for n in (11, 41))
        few, many = (UniPC(steps=1).solve(exact, given, times, NOTHING) - truth for times in ladders)
        assert math.log(few.norm() / many.norm()) / math.log(4) > 2.6
