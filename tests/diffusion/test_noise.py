from __future__ import annotations

import pytest
import torch
from scipy import stats

from diffusion.noise import LogitNormal, RectifiedFlow, Schedule, Uniform, broadcast, shifted
from tests.diffusion.exact import Trigonometric

SCHEDULES = [RectifiedFlow(), Trigonometric()]


def test_broadcast_gives_one_number_to_each_sample():
    x = torch.ones(2, 3, 4)
    assert (broadcast(torch.tensor([2.0, 5.0]), x) * x).sum((1, 2)).tolist() == [24, 60]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_path_runs_from_latents_to_noise(schedule: Schedule):
    x, z = torch.randn(2, 5, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(schedule.perturb(x, z, x.new_zeros(5)), x)
    torch.testing.assert_close(schedule.perturb(x, z, x.new_ones(5)), z)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_velocity_is_the_derivative_of_the_path(schedule: Schedule):
    x, z = torch.randn(2, 5, 3, 2, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    slope = (schedule.perturb(x, z, t + 1e-5) - schedule.perturb(x, z, t - 1e-5)) / 2e-5
    torch.testing.assert_close(
        schedule.velocity(schedule.perturb(x, z, t), x, t), slope, rtol=1e-7, atol=1e-7
    )


def test_rectified_flow_has_one_velocity_everywhere():
    schedule, (x, z) = RectifiedFlow(), torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.01, 0.3, 0.7, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.velocity(schedule.perturb(x, z, t), x, t), z - x)


def test_shift_keeps_the_ends_and_is_undone_by_its_inverse():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    moved = shifted(t, 3.0)
    assert moved[0] == 0
    assert moved[-1] == 1
    assert (moved[1:-1] > t[1:-1]).all()
    torch.testing.assert_close(shifted(moved, 1 / 3), t)
    # Esser et al., 2024: the shift is of odds sigma / alpha, by the factor itself.
    odds = t[1:-1] / (1 - t[1:-1])
    torch.testing.assert_close(moved[1:-1] / (1 - moved[1:-1]), 3 * odds)


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_times_have_the_stated_distributions(shift: float):
    u = (torch.arange(2000) + 0.5) / 2000

    def unshifted(t: torch.Tensor) -> torch.Tensor:
        return shifted(t.double(), 1 / shift)

    logits = torch.logit(unshifted(LogitNormal(mean=-0.4, std=1.2, shift=shift)(u)))
    assert stats.kstest(logits.numpy(), stats.norm(-0.4, 1.2).cdf).statistic < 1e-3
    assert stats.kstest(unshifted(Uniform(shift=shift)(u)).numpy(), stats.uniform.cdf).statistic < 1e-3


def test_times_are_inside_the_path_for_every_number_that_can_be_drawn():
    extremes = torch.tensor([2**-24, 1 - 2**-24])
    for times in (LogitNormal(), LogitNormal(std=2.0), Uniform(shift=3.0)):
        t = times(extremes)
        assert 0 < t[0] < t[1] < 1
