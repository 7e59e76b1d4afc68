"""Every sampler on every schedule with every parameterisation draws from the distribution."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser, Denoiser, On
from diffusion.noise import Schedule, VariancePreserving
from diffusion.preconditioning import EDM, Clean, FlowVelocity, Noise, Preconditioning, Velocity
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.dpm import DPM
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from diffusion.samplers.langevin import AnnealedLangevin
from diffusion.samplers.predictor_corrector import PredictorCorrector
from diffusion.samplers.runge_kutta import RungeKutta
from diffusion.samplers.sampler import Sampler
from diffusion.samplers.spacing import Karras
from diffusion.samplers.unipc import UniPC
from tests.diffusion.exact import SCHEDULES, ExactMixture, two_classes

NOTHING = Conditioning()
ROWS = 1200
LADDER = Karras(low=0.02)
SAMPLERS: dict[str, Sampler] = {
    "Euler": Euler(steps=30, spacing=LADDER),
    "DDIM, eta 0.5": DDIM(steps=30, eta=0.5, spacing=LADDER),
    "DDPM, small": DDPM(steps=60, spacing=LADDER),
    "DDPM, large": DDPM(steps=30, variance="large", spacing=LADDER),
    "Heun": Heun(steps=10, spacing=LADDER),
    "Heun, churned": Heun(steps=20, churn=4.0, spacing=LADDER),
    "DPM": DPM(steps=14, spacing=LADDER),
    "UniPC": UniPC(steps=14, spacing=LADDER),
    "Runge-Kutta": RungeKutta(steps=6, spacing=LADDER),
    "Langevin": AnnealedLangevin(steps=20, corrections=4, ratio=0.5, spacing=Karras(low=0.02, high=5.0)),
    "predictor-corrector": PredictorCorrector(predictor=Euler(steps=25, spacing=LADDER)),
}
PARAMETERISATIONS: list[Preconditioning] = [FlowVelocity(), Velocity(), Noise(), Clean(), EDM(data_std=1.2)]


class Raw:
    """The network that a preconditioning makes an exact denoiser of."""

    def __init__(self, exact: ExactMixture, preconditioning: Preconditioning) -> None:
        self.exact, self.preconditioning = exact, preconditioning

    def __call__(self, x: torch.Tensor, c_noise: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        path, told = self.exact.schedule, c_noise[0].double()
        if isinstance(self.preconditioning, EDM):
            ratio = torch.exp(4 * told)
            told = path.time(ratio / (1 + ratio))
        c_skip, c_out, c_in, _ = (float(c) for c in self.preconditioning(*path(told), told))
        x_t = x / c_in
        return (self.exact(x_t, float(told), conditioning) - c_skip * x_t) / c_out


def denoiser(schedule: Schedule, preconditioning: Preconditioning) -> AnyDenoiser:
    """What says nothing at pure noise is one of a chain that never gets there, asked on the other's path."""
    if preconditioning.at_noise or schedule.at(1.0)[0]:
        return Denoiser(Raw(two_classes(schedule), preconditioning), schedule, preconditioning)
    chain = VariancePreserving.linear()
    return On(Denoiser(Raw(two_classes(chain), preconditioning), chain, preconditioning), schedule)


@functools.cache
def normal(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(ROWS, 2, 1, 1, generator=generator, dtype=torch.float64)


def assert_recovers(latents: torch.Tensor) -> None:
    """Means within 4 standard errors, and a little for steps and for starting without the last signal."""
    mean, covariance = two_classes().moments()
    rows = latents.flatten(1)
    errors = 4 * (covariance.diagonal() / ROWS).sqrt() + 0.02
    assert ((rows.mean(0) - mean).abs() < errors).all()
    torch.testing.assert_close(rows.T.cov(), covariance, rtol=0.12, atol=0.06)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_sampler_on_every_schedule(schedule: str, sampler: str):
    exact = two_classes(SCHEDULES[schedule])
    assert_recovers(SAMPLERS[sampler](exact, normal(0), NOTHING, lambda n: normal(1 + n)))


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_every_parameterisation_the_same(sampler: str, schedule: str, parameterisation: Preconditioning):
    """Row by row what the exact denoiser gives, so that four rows and steps stand for all of them above."""
    path = SCHEDULES[schedule]
    ours = in_short(sampler, denoiser(path, parameterisation))
    torch.testing.assert_close(ours, exactly(sampler, schedule), rtol=1e-2, atol=1e-2)


def in_short(name: str, asked: AnyDenoiser) -> torch.Tensor:
    sampler = SAMPLERS[name]
    if isinstance(sampler, PredictorCorrector):
        sampler = replace(sampler, predictor=replace(sampler.predictor, steps=4))
    elif isinstance(sampler, AnnealedLangevin):
        sampler = replace(sampler, steps=4, corrections=1)
    else:
        sampler = replace(sampler, steps=4)
    return sampler(asked, normal(0)[:4], NOTHING, lambda n: normal(1 + n)[:4])


@functools.cache
def exactly(sampler: str, schedule: str) -> torch.Tensor:
    return in_short(sampler, two_classes(SCHEDULES[schedule]))
