"""What samplers have in common: they go from noise to clean latents along decreasing times."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.noise import shifted


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Solves dx/dt = velocity(x_t, E[x | x_t], t) from t = 1 to 0 (Song et al., 2021, Equation 13)."""

    steps: int
    shift: float = 1.0
    """Times are evenly spaced, then shifted: above 1, more of them lie near the noise."""

    def times(self) -> list[float]:
        """The `steps + 1` times, from 1 down to 0."""
        return shifted(torch.linspace(1, 0, self.steps + 1, dtype=torch.float64), self.shift).tolist()

    @torch.no_grad()
    def __call__(
        self, denoiser: AnyDenoiser, noise: Float[Tensor, "b c h w"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Latents, still whitened. All randomness is in `noise`, so a row does not depend on its batch."""
        _, sigma = denoiser.schedule(noise.new_ones(()))
        x = sigma * noise
        for t, s in itertools.pairwise(self.times()):
            x = self.step(denoiser, x, t, s, conditioning)
        return x

    @abstractmethod
    def step(
        self,
        denoiser: AnyDenoiser,
        x_t: Float[Tensor, "b c h w"],
        t: float,
        s: float,
        conditioning: Conditioning,
    ) -> Float[Tensor, "b c h w"]:
        """x_s from x_t, 0 <= s < t."""


def velocity(
    denoiser: AnyDenoiser, x_t: Float[Tensor, "b c h w"], t: float, conditioning: Conditioning
) -> Float[Tensor, "b c h w"]:
    """The ODE's right-hand side: one call of the denoiser."""
    times = x_t.new_full((len(x_t),), t)
    return denoiser.schedule.velocity(x_t, denoiser(x_t, times, conditioning), times)
