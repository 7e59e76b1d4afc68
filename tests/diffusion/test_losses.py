from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr

from diffusion.conditioning import Conditioning
from diffusion.denoiser import Denoiser
from diffusion.losses import MinSNR, Output, denoising, edm, flow_matching
from diffusion.noise import VarianceExploding, VariancePreserving, broadcast
from diffusion.preconditioning import EDM, Clean, FlowVelocity, Noise, Preconditioning, Velocity
from tests.diffusion.exact import gaussian, named

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


@pytest.mark.parametrize(
    ("kind", "parameterisation"), [(Noise(), "epsilon"), (Velocity(), "v_prediction"), (Clean(), "sample")]
)
def test_min_snr_is_what_diffusers_trainers_compute(kind: Preconditioning, parameterisation: str):
    """Their weight multiplies the loss of the network's own output; ours that of the clean latents."""
    chain, scheduler = (
        VariancePreserving.scaled_linear(),
        DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    )
    timesteps = torch.arange(0, 1000, 7)
    snr = compute_snr(scheduler, timesteps).double()
    capped = torch.minimum(snr, torch.full_like(snr, 5.0))
    theirs = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[parameterisation]
    alpha, sigma = chain((timesteps.double() + 1) / 1000)
    ours = MinSNR(gamma=5.0)(alpha, sigma) / Output(kind)(alpha, sigma)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [FlowVelocity(), Velocity(), Noise(), EDM()], ids=named)
def test_the_plain_loss_is_that_of_the_output(kind: Preconditioning):
    chain = VariancePreserving.cosine()
    x, z, output = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    loss = denoising(Denoiser(lambda *_: output, chain, kind), x, z, t, NOTHING, Output(kind))
    alpha, sigma = (broadcast(c, x) for c in chain(t))
    c_skip, c_out, *_ = (broadcast(c, x) for c in kind(*chain(t), t))
    target = (x - c_skip * (alpha * x + sigma * z)) / c_out
    torch.testing.assert_close(loss, (output - target).square().mean((1, 2, 3)))


def test_edm_starts_at_one_at_every_level_of_noise():
    """A network that says nothing, on latents of unit variance: the expected loss is 1."""
    x, z = torch.randn(2, 20_000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(lambda x_t, c, _: torch.zeros_like(x_t), VarianceExploding(), EDM())
    for t in (0.3, 0.5, 0.8, 1.0):
        assert denoising(denoiser, x, z, t, NOTHING, edm()).mean().item() == pytest.approx(1, abs=0.04)
