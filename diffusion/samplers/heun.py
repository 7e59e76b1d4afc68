"""Heun's method."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Sampler, velocity


@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """Second order, two calls a step but the last (Karras et al., 2022, Algorithm 1)."""

    def step(
        self,
        denoiser: AnyDenoiser,
        x_t: Float[Tensor, "b c h w"],
        t: float,
        s: float,
        conditioning: Conditioning,
    ) -> Float[Tensor, "b c h w"]:
        slope = velocity(denoiser, x_t, t, conditioning)
        x_s = x_t + (s - t) * slope
        if s == 0:  # the velocity has sigma in its denominator
            return x_s
        return x_t + (s - t) * (slope + velocity(denoiser, x_s, s, conditioning)) / 2
