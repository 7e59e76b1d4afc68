from __future__ import annotations

import torch

from diffusion.samplers.runge_kutta import RungeKutta
from diffusion.samplers.spacing import Karras
from tests.diffusion.exact import SCHEDULES, correlated
from tests.diffusion.samplers.oracle import NOTHING


def test_the_flow_is_the_exact_one_on_every_schedule():
    noise = torch.randn(16, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for schedule in SCHEDULES.values():
        exact = correlated(schedule)
        sampler = RungeKutta(steps=25, spacing=Karras(low=0.02))
        times = sampler.spacing(schedule, 25)
        x = schedule.at(times[0])[1] * noise
        ours = sampler.solve(exact, x, times, NOTHING)
        torch.testing.assert_close(ours, exact.flow(x, times[0], 0.0), rtol=0, atol=2e-3)


def test_up_the_path_and_down_again():
    exact = correlated()
    x = exact.sample(16)
    times = torch.linspace(0.02, 1, 40).double().tolist()
    up = RungeKutta(steps=1).solve(exact, x, times, NOTHING)
    down = RungeKutta(steps=1).solve(exact, up, times[::-1], NOTHING)
    torch.testing.assert_close(up, exact.flow(x, times[0], 1.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(down, x, rtol=0, atol=1e-4)
