"""Denoising where the noise level is known: the mean of the images that it could be, or one of them.

Noise of level l in whitened latents, y = x + l n, is what the path has at the place u = l / (1 + l), but for
a factor alpha.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.editing.ladder import share, squeezed
from diffusion.noise import Schedule
from diffusion.samplers.sampler import Draws, Sampler


def denoise(
    denoiser: AnyDenoiser, noisy: Float[Tensor, "b c h w"], level: float, conditioning: Conditioning
) -> Float[Tensor, "b c h w"]:
    """E[x | x + level n = noisy], in one call: of all answers the one of least squared error, and blurred.

    `ValueError` for a negative level, or one above that of the path's end.
    """
    if level == 0:
        return noisy.clone()
    t, alpha = _start(denoiser.schedule, level)
    return denoiser(alpha * noisy, t, conditioning)


@torch.no_grad()
def draw_denoised(
    sampler: Sampler,
    denoiser: AnyDenoiser,
    noisy: Float[Tensor, "b c h w"],
    level: float,
    conditioning: Conditioning,
    draws: Draws | None = None,
) -> Float[Tensor, "b c h w"]:
    """One of the images that it could be: sharp, at twice the squared error (Blau and Michaeli, 2018).

    A sampler that solves the reverse SDE (`DDPM`, `DDIM` of eta 1) draws from p(x | x + level n = noisy). One
    that solves the ODE gives one image of a plausible kind, the same each time. All steps lie below the
    level. `ValueError` as of `denoise`.
    """
    if level == 0:
        return noisy.clone()
    t, alpha = _start(denoiser.schedule, level)
    times = sampler.spacing(denoiser.schedule, sampler.steps)
    times = [t, *squeezed(times, share(times, t))[1:]]
    return sampler.solve(denoiser, alpha * noisy, times, conditioning, draws)


def _start(schedule: Schedule, level: float) -> tuple[float, float]:
    """The time at which the path has this level, sigma / alpha, and alpha there."""
    alpha, sigma = schedule.at(1.0)
    if level < 0 or level * alpha > sigma:
        end = sigma / alpha if alpha else float("inf")
        raise ValueError(f"a level of {level:g} is not on the path, whose levels go from 0 to {end:g}.")
    t = schedule.time_at(level / (1 + level))
    return t, schedule.at(t)[0]
