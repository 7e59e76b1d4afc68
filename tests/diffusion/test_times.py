from __future__ import annotations

import pytest
import torch
from scipy import stats

from diffusion.noise import shifted
from diffusion.times import LogitNormal, LogNormal, Uniform
from tests.diffusion.exact import SCHEDULES


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_times_have_the_stated_distributions(shift: float):
    u = (torch.arange(2000) + 0.5) / 2000

    def unshifted(t: torch.Tensor) -> torch.Tensor:
        return shifted(t.double(), 1 / shift)

    logits = torch.logit(unshifted(LogitNormal(mean=-0.4, std=1.2, shift=shift)(u)))
    assert stats.kstest(logits.numpy(), stats.norm(-0.4, 1.2).cdf).statistic < 1e-3
    assert stats.kstest(unshifted(Uniform(shift=shift)(u)).numpy(), stats.uniform.cdf).statistic < 1e-3


@pytest.mark.parametrize("name", ["VE", "VP cosine", "rectified flow"])
def test_noise_levels_are_log_normal_on_any_path(name: str):
    schedule = SCHEDULES[name]
    t = LogNormal(schedule=schedule)((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    alpha, sigma = schedule(t)
    assert stats.kstest((sigma / alpha).log().numpy(), stats.norm(-1.2, 1.2).cdf).statistic < 1e-3


def test_times_are_inside_the_path_for_every_number_that_can_be_drawn():
    extremes = torch.tensor([2**-24, 1 - 2**-24])
    for times in (LogitNormal(), LogitNormal(std=2.0), Uniform(shift=3.0)):
        t = times(extremes)
        assert 0 < t[0] < t[1] < 1
