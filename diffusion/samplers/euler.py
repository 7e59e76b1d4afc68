"""Euler's method."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Sampler, velocity


@dataclass(frozen=True, kw_only=True)
class Euler(Sampler):
    """First order, one call a step. On the rectified flow it is DDIM (Song et al., 2021, Equation 12)."""

    def step(
        self,
        denoiser: AnyDenoiser,
        x_t: Float[Tensor, "b c h w"],
        t: float,
        s: float,
        conditioning: Conditioning,
    ) -> Float[Tensor, "b c h w"]:
        return x_t + (s - t) * velocity(denoiser, x_t, t, conditioning)
