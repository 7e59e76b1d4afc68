from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from diffusion.noise import RectifiedFlow, Schedule, VarianceExploding, VariancePreserving
from diffusion.samplers.spacing import Even, Karras, Leading, LogSNR, Spacing
from tests.diffusion.exact import SCHEDULES

CHAIN = VariancePreserving.scaled_linear()


def ratios(schedule: Schedule, times: list[float]) -> list[float]:
    return [sigma / alpha for alpha, sigma in map(schedule.at, times)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 18])
@pytest.mark.parametrize(
    "spacing",
    [Even(), Even(shift=3.0), Leading(offset=1), Karras(), LogSNR()],
    ids=lambda s: type(s).__name__,
)
def test_times_fall_to_0_and_no_step_is_empty(spacing: Spacing, steps: int, schedule: str):
    times = spacing(SCHEDULES[schedule], steps)
    assert len(times) == steps + 1
    assert times[0] <= 1
    assert times[-1] == 0
    assert all(t > s for t, s in itertools.pairwise(times))


@pytest.mark.parametrize("steps", [10, 25, 50])
def test_the_chains_timesteps_are_those_of_diffusers(steps: int):
    for name, spacing in (("trailing", Even()), ("leading", Leading(offset=1))):
        scheduler = DDIMScheduler(timestep_spacing=name, steps_offset=1)
        scheduler.set_timesteps(steps)
        theirs = ((scheduler.timesteps.double() + 1) / 1000).tolist()
        assert spacing(CHAIN, steps)[:-1] == pytest.approx(theirs, abs=1e-9)


def test_a_shift_moves_the_middle():
    assert Even(shift=3.0)(RectifiedFlow(), 10)[5] == pytest.approx(3 / 4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_shifted_times_are_the_sigmas_of_diffusers(shift: float):
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20).tolist())
    assert Even(shift=shift)(RectifiedFlow(), 20) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize("steps", [5, 18])
def test_karras_sigmas_are_those_of_diffusers(steps: int):
    edm: Any = EDMEulerScheduler()
    edm.set_timesteps(steps)
    for path in (VarianceExploding(), RectifiedFlow()):
        assert ratios(path, Karras()(path, steps)) == pytest.approx(edm.sigmas.tolist(), rel=1e-6, abs=1e-9)

    chain: Any = DPMSolverMultistepScheduler(trained_betas=CHAIN.betas, use_karras_sigmas=True)
    chain.set_timesteps(steps)
    low = float(chain.sigmas[-2])
    # Asked for more noise than the chain has, it begins at the chain's end, as theirs does.
    assert ratios(CHAIN, Karras(low=low)(CHAIN, steps)) == pytest.approx(
        chain.sigmas.tolist(), rel=1e-4, abs=1e-9
    )


@pytest.mark.parametrize("steps", [5, 18])
def test_log_snr_sigmas_are_those_of_diffusers(steps: int):
    scheduler: Any = EDMEulerScheduler(sigma_schedule="exponential")
    scheduler.set_timesteps(steps)
    times = LogSNR()(VarianceExploding(), steps)
    assert ratios(VarianceExploding(), times) == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5, abs=1e-9)
