from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from diffusion import randomness
from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.guidance import ClassifierFree
from diffusion.noise import Schedule, Time
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.dpm import DPM
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from diffusion.samplers.langevin import AnnealedLangevin
from diffusion.samplers.predictor_corrector import PredictorCorrector
from diffusion.samplers.runge_kutta import RungeKutta
from diffusion.samplers.sampler import Sampler
from diffusion.samplers.spacing import Even
from diffusion.samplers.unipc import UniPC
from tests.diffusion.exact import SCHEDULES, two_classes

CALLS = {
    Euler(steps=6): 6,
    DDIM(steps=6, eta=0.5): 6,
    DDPM(steps=6): 6,
    DDPM(steps=6, variance="large"): 6,
    Heun(steps=6): 11,
    Heun(steps=6, churn=1.0): 11,
    DPM(steps=6): 6,
    UniPC(steps=6): 6,
    UniPC(steps=6, order=3): 6,
    RungeKutta(steps=6): 23,
    AnnealedLangevin(steps=6, corrections=3): 16,
    PredictorCorrector(predictor=DDPM(steps=6), corrections=2): 16,
}
"""Each sampler, and how often it asks."""


@dataclass
class Counted:
    """A denoiser that notes when it was asked."""

    denoiser: AnyDenoiser
    asked: list[float] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: torch.Tensor, t: Time, conditioning: Conditioning) -> torch.Tensor:
        assert isinstance(t, float)
        self.asked.append(t)
        return self.denoiser(x_t, t, conditioning)


@pytest.mark.parametrize("schedule", ["rectified flow", "VP linear", "VE"])
@pytest.mark.parametrize("sampler", CALLS, ids=repr)
def test_calls_are_as_many_as_said_and_none_where_all_is_clean(sampler: Sampler, schedule: str):
    counted, noise = Counted(two_classes(SCHEDULES[schedule])), torch.randn(1, 2, 1, 1, dtype=torch.float64)
    sampler(counted, noise, Conditioning(), lambda _: noise)
    assert len(counted.asked) == CALLS[sampler]
    assert min(counted.asked) > 0
    assert max(counted.asked) <= 1


@pytest.mark.parametrize("sampler", CALLS, ids=repr)
def test_a_row_does_not_depend_on_its_batch(sampler: Sampler):
    """Nor does its noise on the way, which only samplers that say so need."""
    exact, conditioning = ClassifierFree(two_classes(), scale=1.5), two_classes().conditioning(1, 6)
    noise, positions = randomness.normal(0, np.arange(6), (2, 1, 1)).double(), np.arange(6)
    whole, *parts = (
        sampler(exact, noise[rows], conditioning[rows], randomness.Draws(0, positions[rows], (2, 1, 1)))
        for rows in (slice(0, 6), slice(0, 1), slice(1, 6))
    )
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    if sampler.stochastic:
        with pytest.raises(ValueError, match="draws noise"):
            sampler(exact, noise, conditioning)
    else:
        assert sampler(exact, noise, conditioning).equal(whole)


@pytest.mark.parametrize("sampler", [Euler(steps=60), Heun(steps=30, spacing=Even(shift=2.0))], ids=repr)
def test_samples_of_a_class_are_of_that_class(sampler: Sampler):
    exact = two_classes()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3000, 2, 1, 1, generator=generator, dtype=torch.float64)
    for label in (0, 1):
        latents = sampler(exact, noise, exact.conditioning(label, 3000))
        torch.testing.assert_close(latents.mean(0), exact.mean[label], rtol=0, atol=0.05)
        torch.testing.assert_close(latents.std(0), exact.std[label], rtol=0.05, atol=0)


def test_sampling_keeps_no_graph_and_the_noise_as_it_was():
    noise = torch.randn(2, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    before = noise.detach().clone()
    latents = Heun(steps=3)(two_classes(), noise, two_classes().conditioning(0, 2))
    assert not latents.requires_grad
    assert noise.equal(before)
