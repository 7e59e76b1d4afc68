from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from diffusion.denoiser import Denoiser
from diffusion.noise import VariancePreserving
from diffusion.preconditioning import Noise, Velocity
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.euler import Euler
from diffusion.samplers.spacing import Even, Leading
from tests.diffusion.exact import SCHEDULES, two_classes
from tests.diffusion.samplers.oracle import NOTHING, drawn, network, noise, start, theirs


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_same_as_diffusers(eta: float, spacing: str, predicts: str):
    chain = VariancePreserving.scaled_linear()
    scheduler = DDIMScheduler(
        trained_betas=chain.betas,
        clip_sample=False,
        prediction_type=predicts,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(20)
    predict, preconditioning = (noise, Noise()) if predicts == "epsilon" else (network, Velocity())
    ladder = Even() if spacing == "trailing" else Leading()
    times = ladder(chain, 20)
    assert ((scheduler.timesteps + 1) / 1000).tolist() == pytest.approx(times[:-1])

    denoiser = Denoiser(predict, chain, preconditioning)
    ours = DDIM(steps=20, eta=eta).solve(denoiser, start(), times, NOTHING, drawn)
    x = theirs(scheduler, start(), predict, eta=eta, generator=None)
    torch.testing.assert_close(ours, x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_noise_it_is_euler_and_with_all_of_it_ddpm(schedule: str):
    exact = two_classes(SCHEDULES[schedule])
    x = torch.randn(5, 2, 1, 1, dtype=torch.float64)
    fresh = torch.randn(8, 5, 2, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        DDIM(steps=8)(exact, x, NOTHING), Euler(steps=8)(exact, x, NOTHING), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        DDIM(steps=8, eta=1.0)(exact, x, NOTHING, fresh.__getitem__),
        DDPM(steps=8)(exact, x, NOTHING, fresh.__getitem__),
        rtol=1e-9,
        atol=1e-9,
    )
