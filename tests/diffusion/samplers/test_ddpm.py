from __future__ import annotations

from typing import Literal

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from diffusion.conditioning import Conditioning
from diffusion.denoiser import Denoiser
from diffusion.guidance import ClassifierFree
from diffusion.noise import VariancePreserving
from diffusion.preconditioning import Noise
from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.spacing import Leading
from diffusion.variance import LearnedVariance
from tests.diffusion.exact import gaussian, two_classes
from tests.diffusion.samplers.oracle import NOTHING, drawn, noise, start, theirs

CHAIN = VariancePreserving.scaled_linear()


def twice(x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """With a variance inside and outside its limits."""
    return torch.cat([noise(x, time, conditioning), 1.2 * torch.cos(3 * x)], dim=1)


def scheduler(variance_type: str, steps: int) -> DDPMScheduler:
    made = DDPMScheduler(
        trained_betas=CHAIN.betas,
        clip_sample=False,
        variance_type=variance_type,
        timestep_spacing="leading",  # with "trailing" its large variance is added to clean latents too
    )
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize(("variance", "name"), [("small", "fixed_small"), ("large", "fixed_large")])
def test_same_as_diffusers(steps: int, variance: Literal["small", "large"], name: str):
    denoiser = Denoiser(noise, CHAIN, Noise())
    ours = DDPM(steps=steps, spacing=Leading(), variance=variance)
    x = theirs(scheduler(name, steps), start(), noise, generator=None)
    y = ours.solve(denoiser, start(), ours.spacing(CHAIN, steps), NOTHING, drawn)
    torch.testing.assert_close(y, x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [10, 50])
def test_with_a_learned_variance_the_same_as_diffusers(steps: int):
    denoiser = LearnedVariance(twice, CHAIN, Noise())
    ours = DDPM(steps=steps, spacing=Leading(), variance="learned")
    x = theirs(scheduler("learned_range", steps), start(), twice, generator=None)
    y = ours.solve(denoiser, start(), ours.spacing(CHAIN, steps), NOTHING, drawn)
    torch.testing.assert_close(y, x, rtol=2e-5, atol=2e-5)


def test_a_learned_variance_behind_guidance_is_the_conditional_answers():
    """The mean moves with the scale, the noise does not; and the network is called once a step."""
    batches = []

    def network(x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        batches.append(len(x))
        assert conditioning.label is not None
        label = conditioning.label.reshape(-1, 1, 1, 1).to(x.dtype)
        return torch.cat([x + label, label - x.sin()], dim=1)

    denoiser = LearnedVariance(network, CHAIN, Noise())
    told = Conditioning(label=torch.tensor([0, 1, 1]), classes=2)
    x, sampler = torch.randn(3, 1, 2, 2, dtype=torch.float64), DDPM(steps=1, variance="learned")

    def noisy(scale: float) -> torch.Tensor:
        """What the noise alone adds to a step."""
        guided = ClassifierFree(denoiser, scale)
        none, some = (sampler.step(guided, x, 0.6, 0.5, told, lambda _, z=z: z) for z in (0 * x, x.cos()))
        return some - none

    torch.testing.assert_close(noisy(3.0), noisy(1.0), rtol=1e-8, atol=1e-10)
    assert batches == [6, 6, 3, 3]
    at = {
        scale: sampler.step(ClassifierFree(denoiser, scale), x, 0.6, 0.5, told, lambda _: 0 * x)
        for scale in (1.0, 3.0)
    }
    assert not torch.allclose(at[1.0], at[3.0])


def test_what_has_no_learned_variance_is_refused():
    exact = two_classes()
    for denoiser in (exact, ClassifierFree(exact, 2.0), Denoiser(noise)):
        with pytest.raises(ValueError, match="no learned variance"):
            DDPM(steps=2, variance="learned")(denoiser, torch.randn(1, 2, 1, 1), NOTHING, drawn)


@pytest.mark.parametrize(("variance", "std"), [("small", 1e-3), ("large", 1.0)])
def test_each_variance_is_exact_where_it_says(variance: Literal["small", "large"], std: float):
    """The posterior's for latents of one point; the large one for standard normal latents, in any steps."""
    exact = gaussian(0.0, torch.full((1, 2, 2), std, dtype=torch.float64), CHAIN)
    generator = torch.Generator().manual_seed(0)
    shape = (20_000, 1, 2, 2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    sampler, (alpha, sigma) = DDPM(steps=2, variance=variance), CHAIN.at(0.3)
    y = sampler.solve(
        exact,
        (x * std * CHAIN.at(0.9)[0])
        + CHAIN.at(0.9)[1] * torch.randn(shape, generator=generator, dtype=torch.float64),
        [0.9, 0.5, 0.3],
        NOTHING,
        lambda _: torch.randn(shape, generator=generator, dtype=torch.float64),
    )
    assert y.var().item() == pytest.approx((alpha * std) ** 2 + sigma**2, rel=0.02)


def test_noise_on_the_way_must_be_given():
    assert DDPM(steps=2).stochastic
    with pytest.raises(ValueError, match="give it `draws`"):
        DDPM(steps=2)(two_classes(), torch.randn(1, 2, 1, 1), NOTHING)
