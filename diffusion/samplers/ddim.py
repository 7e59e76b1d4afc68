"""DDIM: Euler's method, some of whose noise is replaced by fresh noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws, OneStep, along, needed
from diffusion.variance import posterior


@dataclass(frozen=True, kw_only=True)
class DDIM(OneStep):
    """First order, one call a step (Song et al., 2021, "Denoising diffusion implicit models", Equation 12):

    x_s = alpha_s x̂ + sqrt(sigma_s^2 - n^2) ẑ + n z, with n^2 = eta^2 times the posterior's variance.
    """

    eta: float = 0.0
    """0 is the ODE, and the same as `Euler`; 1 is `DDPM` with its small variance."""

    @property
    def stochastic(self) -> bool:
        return self.eta != 0

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
        here, there = denoiser.schedule.at(t), denoiser.schedule.at(s)
        clean = denoiser(x_t, t, conditioning)
        a, b = there
        if not self.eta or b == 0:
            return along(x_t, clean, here, there)
        fresh = self.eta * math.sqrt(posterior(here, there).small)
        kept = math.sqrt(max(0.0, b * b - fresh * fresh))
        return torch.add(along(x_t, clean, here, (a, kept)), needed(draws)(number), alpha=fresh)
