"""From latents to the noise that a sampler makes them of."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Sampler


@torch.no_grad()
def invert(
    sampler: Sampler,
    denoiser: AnyDenoiser,
    latents: Float[Tensor, "b c h w"],
    conditioning: Conditioning,
    *,
    start: float = 1e-3,
) -> Float[Tensor, "b c h w"]:
    """Noise of which `sampler(denoiser, noise, conditioning)` makes these latents again, but for its error:
    the ladder climbed from clean to noise (Song et al., 2021, "DDIM", Section 5.4).

    Exact for the ODE; a step's error is of the sampler's order. Guidance adds to it, as the way back is
    steeper: take scale 1, or many steps.

    Args:
        sampler: any that draws no noise on its way.
        start: the place u = sigma / (alpha + sigma) to begin at, as a denoiser is not asked where all is
            clean. The latents are taken to lie at alpha x there, to which the ODE leads but for u^2.

    Raises:
        ValueError: the sampler draws noise, so that its way cannot be gone back.
    """
    if sampler.stochastic:
        raise ValueError(f"{type(sampler).__name__} draws noise on its way, which cannot be gone back.")
    schedule = denoiser.schedule
    first = schedule.time_at(start)
    climb = [first, *(t for t in reversed(sampler.spacing(schedule, sampler.steps)) if t > first)]
    alpha, _ = schedule.at(first)
    _, sigma = schedule.at(climb[-1])
    return sampler.solve(denoiser, alpha * latents, climb, conditioning) / sigma
