from __future__ import annotations

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.denoiser import Denoiser
from diffusion.losses import flow_matching
from tests.diffusion.exact import gaussian

NOTHING = Conditioning()


def test_loss_is_the_squared_error_of_the_networks_velocity():
    x, z, output = torch.randn(3, 5, 2, 3, 3)
    t = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.99])
    loss = flow_matching(Denoiser(lambda x_t, c, _: output), x, z, t, NOTHING)
    torch.testing.assert_close(loss, (output - (z - x)).square().mean((1, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_no_denoiser_is_better_than_the_exact_one(t: float):
    """Its loss is the velocity's variance given x_t: s^2 / ((1 - t)^2 s^2 + t^2) for x ~ N(m, s^2)."""
    s = 0.5
    exact = gaussian(2.0, torch.full((1, 1, 1), s, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 40_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    times = x.new_full((len(x),), t)
    loss = flow_matching(exact, 2.0 + s * x, z, times, NOTHING).mean().item()
    assert loss == pytest.approx(s**2 / ((1 - t) ** 2 * s**2 + t**2), rel=0.03)


def test_its_gradient_reaches_the_network_at_every_time():
    scale = torch.ones((), requires_grad=True)
    x, z = torch.randn(2, 3, 2, 3, 3)
    t = torch.tensor([1e-3, 0.5, 1.0])
    denoiser = Denoiser(lambda x_t, c, _: scale * x_t)
    losses = flow_matching(denoiser, x, z, t, NOTHING)
    for n, loss in enumerate(losses):
        (got,) = torch.autograd.grad(loss, scale, retain_graph=True)
        x_t = denoiser.schedule.perturb(x, z, t)[n]
        expected = (2 * (x_t - (z - x)[n]) * x_t).mean()
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
