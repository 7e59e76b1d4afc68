"""What samplers have in common: they carry latents along times, from noise to clean."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.spacing import Even, Spacing

Draws = Callable[[int], Tensor]
"""The n-th fresh standard normal noise, like the latents: `randomness.Draws`, or a test's own."""


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Solves the probability flow ODE, or its SDE, for any denoiser on any schedule.

    Coefficients are Python numbers, computed before the step: a step waits for no device and costs the same
    each time. Time 0 is where latents are clean; a denoiser is not asked there.
    """

    steps: int
    spacing: Spacing = field(default_factory=Even)

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise on its way, and must be given `draws`."""
        return False

    @torch.no_grad()
    def __call__(
        self,
        denoiser: AnyDenoiser,
        noise: Float[Tensor, "b c h w"],
        conditioning: Conditioning,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Latents, still whitened. All randomness is in `noise` and `draws`, so a row does not depend on its
        batch; `ValueError` where a sampler that needs `draws` is given none."""
        times = self.spacing(denoiser.schedule, self.steps)
        _, sigma = denoiser.schedule.at(times[0])
        return self.solve(denoiser, sigma * noise, times, conditioning, draws)

    @abstractmethod
    def solve(
        self,
        denoiser: AnyDenoiser,
        x: Float[Tensor, "b c h w"],
        times: Sequence[float],
        conditioning: Conditioning,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """From `x` at times[0] to the last of `times`: from anywhere on the path to anywhere, and up it too
        unless noise is drawn."""


@dataclass(frozen=True, kw_only=True)
class OneStep(Sampler):
    """A sampler whose step looks at nothing but where it stands."""

    @torch.no_grad()
    def solve(
        self,
        denoiser: AnyDenoiser,
        x: Float[Tensor, "b c h w"],
        times: Sequence[float],
        conditioning: Conditioning,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b c h w"]:
        for n, (t, s) in enumerate(itertools.pairwise(times)):
            x = self.step(denoiser, x, t, s, conditioning, draws, n)
        return x

    @abstractmethod
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
        """x_s from x_t; `number` counts steps, for `draws`."""


def along(
    x_t: Float[Tensor, "b c h w"],
    clean: Float[Tensor, "b c h w"],
    here: tuple[float, float],
    there: tuple[float, float],
) -> Float[Tensor, "b c h w"]:
    """x_s = alpha_s x̂ + sigma_s ẑ with ẑ = (x_t - alpha_t x̂) / sigma_t: where the line through x_t and its
    clean end leads, from (alpha, sigma) here to those there (Song et al., 2021, "DDIM", Equation 12)."""
    (alpha, sigma), (a, s) = here, there
    return torch.add(x_t * (s / sigma), clean, alpha=a - alpha * s / sigma)


def half_log_snr(alpha: float, sigma: float) -> float:
    """lambda = log(alpha / sigma), infinite where there is noise or signal alone (Lu et al., 2022)."""
    if alpha == 0 or sigma == 0:
        return -math.inf if alpha == 0 else math.inf
    return math.log(alpha / sigma)


def needed(draws: Draws | None) -> Draws:
    """`ValueError` where noise on the way is needed and none is given."""
    if draws is None:
        raise ValueError("this sampler draws noise on its way: give it `draws`, as randomness.Draws.")
    return draws
