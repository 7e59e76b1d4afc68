"""Annealed Langevin dynamics: noise and a pull to where data are, at ever lower levels of noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws, Sampler, along, needed


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(Sampler):
    """`corrections` calls a step, and one for the last, which denoises (Song and Ermon, 2019, Algorithm 1).

    Latents come to the next level with the noise of the last one, x_t / alpha being kept, which corrections
    must wear down: it needs many times the calls of any other sampler here, and levels close to each other.
    """

    corrections: int = 20
    """At each level; theirs are 100."""
    ratio: float = 0.22
    """Of signal to noise in a correction: that of the authors' step sizes."""

    @property
    def stochastic(self) -> bool:
        return True

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
            here, there = denoiser.schedule.at(t), denoiser.schedule.at(s)
            if there[1] == 0:
                return along(x, denoiser(x, t, conditioning), here, there)
            x = (there[0] / here[0] if here[0] else there[1] / here[1]) * x  # nothing is kept of pure noise
            x = corrected(
                denoiser,
                x,
                s,
                conditioning,
                draws,
                number=n * self.corrections,
                corrections=self.corrections,
                ratio=self.ratio,
            )
        return x


def corrected(
    denoiser: AnyDenoiser,
    x_t: Float[Tensor, "b c h w"],
    t: float,
    conditioning: Conditioning,
    draws: Draws | None,
    *,
    number: int,
    corrections: int,
    ratio: float,
) -> Float[Tensor, "b c h w"]:
    """Langevin dynamics at one level of noise, x + e score + sqrt(2 e) z with the draws from `number` on.

    The size e = 2 (ratio sigma)^2 is what Song et al., 2021 ("Score-based generative modeling through SDEs"),
    Algorithm 4, get from the norms of a batch, with the norm that the score has on average: it does not
    depend on the batch. The variance is too large by a share of ratio^2 sigma^2 / (data's there) at most.
    """
    alpha, sigma = denoiser.schedule.at(t)
    pull = 2 * ratio**2
    for n in range(number, number + corrections):
        clean = denoiser(x_t, t, conditioning)
        x_t = torch.add((1 - pull) * x_t, clean, alpha=pull * alpha)
        x_t = torch.add(x_t, needed(draws)(n), alpha=2 * ratio * sigma)
    return x_t
