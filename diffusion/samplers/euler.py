"""Euler's method."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws, OneStep, along


@dataclass(frozen=True, kw_only=True)
class Euler(OneStep):
    """First order, one call a step: along the line to the clean answer (Karras et al., 2022, Algorithm 1
    without its correction; the same as `DDIM` with eta 0)."""

    def step(
        self,
        denoiser: AnyDenoiser,
        x_t: Float[Tensor, "b c h w"],
        t: float,
        s: float,
        conditioning: Conditioning,
        draws: Draws | None = None,
        number: int = 0,
    ) -> Float[Tensor, "b c h w"]:
        schedule = denoiser.schedule
        return along(x_t, denoiser(x_t, t, conditioning), schedule.at(t), schedule.at(s))
