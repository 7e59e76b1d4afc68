"""Ancestral sampling: back along the chain, a draw from the posterior at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws, OneStep, needed
from diffusion.variance import learned, posterior


@dataclass(frozen=True, kw_only=True)
class DDPM(OneStep):
    """The SDE, one call a step (Ho et al., 2020, Algorithm 2; on any schedule as Kingma et al., 2021,
    Equation 33, have it): x_s ~ q(x_s | x_t, x̂), and x̂ itself in the last step."""

    variance: Literal["small", "large", "learned"] = "small"
    """The posterior's, exact for latents that are one point; that of standard normal latents, which is beta
    on a chain; or what lies between as the network says, which `diffusion.variance` explains."""

    @property
    def stochastic(self) -> bool:
        return True

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
        """`ValueError` where the variance is to be a learned one, and the denoiser has none."""
        here, there = denoiser.schedule.at(t), denoiser.schedule.at(s)
        share = None
        if self.variance == "learned":
            clean, share = learned(denoiser, x_t, t, conditioning)
        else:
            clean = denoiser(x_t, t, conditioning)
        if there[1] == 0:
            return there[0] * clean
        keep, take, small, large = posterior(here, there)
        noise = needed(draws)(number)
        if share is not None:
            noise = noise * torch.exp(share * (math.log(large / small) / 2))
        scale = math.sqrt(large if self.variance == "large" else small)
        return torch.add(torch.add(keep * x_t, clean, alpha=take), noise, alpha=scale)
