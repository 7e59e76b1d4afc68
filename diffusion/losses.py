"""What a denoiser is trained on."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser


def flow_matching(
    denoiser: AnyDenoiser,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Float[Tensor, " b"],
    conditioning: Conditioning,
) -> Float[Tensor, " b"]:
    """Squared velocity error, mean over a sample's elements (Lipman et al., 2023, Equation 9), for t > 0.

    Latents are whitened: predicting zero costs 2 in the mean at any time on the rectified flow.
    """
    schedule = denoiser.schedule
    x_t = schedule.perturb(latents, noise, t)
    predicted = schedule.velocity(x_t, denoiser(x_t, t, conditioning), t)
    return (predicted - schedule.velocity(x_t, latents, t)).square().flatten(1).mean(1)


def regression(
    denoiser: AnyDenoiser, latents: Float[Tensor, "b c h w"], conditioning: Conditioning
) -> Float[Tensor, " b"]:
    """Mean absolute error of the answer without noise to start from (`samplers.regression`).

    Its minimum is the median of what the conditions leave open: the sharpest figures for PSNR and blurred
    pictures, the baseline that an upscaler by diffusion is held against.
    """
    nothing = torch.zeros_like(latents)
    answer = denoiser(nothing, latents.new_ones(len(latents)), conditioning)
    return (answer - latents).abs().flatten(1).mean(1)
