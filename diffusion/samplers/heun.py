"""Heun's method, with or without fresh noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws, OneStep, along, needed


@dataclass(frozen=True, kw_only=True)
class Heun(OneStep):
    """Second order, two calls a step but the last (Karras et al., 2022, Algorithms 1 and 2).

    The trapezoid is taken on the straight path, y = x_t / (alpha + sigma) over u = sigma / (alpha + sigma),
    whose slope (y - x̂) / u is finite up to pure noise; theirs is over sigma / alpha.
    """

    churn: float = 0.0
    """Noise added over the whole way, S_churn: 0 is the ODE. Spread over the steps, at most sqrt(2) - 1 of
    sigma in each."""
    churned: tuple[float, float] = (0.05, 50.0)
    """sigma / alpha between which noise is added."""
    noise_scale: float = 1.003
    """S_noise: a little above 1 makes up for detail that denoising loses."""

    @property
    def stochastic(self) -> bool:
        return self.churn != 0

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
        alpha, sigma = schedule.at(t)
        low, high = self.churned
        if self.churn and low * alpha <= sigma <= high * alpha:
            ratio = sigma / alpha
            raised = ratio * (1 + min(self.churn / self.steps, math.sqrt(2) - 1))
            t = schedule.time_at(raised / (1 + raised))
            higher, sigma = schedule.at(t)
            added = self.noise_scale * math.sqrt(max(0.0, (sigma / higher) ** 2 - ratio**2))
            x_t = (higher / alpha) * x_t + (higher * added) * needed(draws)(number)
            alpha = higher
        there = a, b = schedule.at(s)
        first = denoiser(x_t, t, conditioning)
        x_s = along(x_t, first, (alpha, sigma), there)
        if b == 0:  # the slope has sigma in its denominator
            return x_s
        # Both slopes are weighted by half of the step: (y - x̂) / u here, and there.
        u, v = sigma / (alpha + sigma), b / (a + b)
        slope = (x_t / (alpha + sigma) - first) / u + (x_s / (a + b) - denoiser(x_s, s, conditioning)) / v
        return (a + b) * (x_t / (alpha + sigma) + (v - u) / 2 * slope)
