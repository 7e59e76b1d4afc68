from __future__ import annotations

import pytest
import torch

from diffusion.noise import RectifiedFlow, Schedule, broadcast
from diffusion.preconditioning import FlowVelocity
from tests.diffusion.exact import Trigonometric


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Trigonometric()])
def test_the_true_velocity_gives_the_true_latents(schedule: Schedule):
    x, z = torch.randn(2, 5, 3, 2, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    x_t = schedule.perturb(x, z, t)
    d_alpha, d_sigma = schedule.derivative(t)
    velocity = broadcast(d_alpha, x) * x + broadcast(d_sigma, x) * z

    c_skip, c_out, c_in, c_noise = FlowVelocity()(schedule, t)
    torch.testing.assert_close(broadcast(c_skip, x) * x_t + broadcast(c_out, x) * velocity, x)
    assert c_in.eq(1).all()
    assert c_noise.equal(t)


def test_on_the_rectified_flow_it_is_one_subtraction():
    t = torch.tensor([0.0, 0.25, 1.0])
    c_skip, c_out, _, _ = FlowVelocity()(RectifiedFlow(), t)
    assert c_skip.tolist() == [1, 1, 1]
    assert c_out.tolist() == [0, -0.25, -1]
