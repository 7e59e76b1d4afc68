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

    Between levels latents keep their place on the straight path, x_t / (alpha + sigma); theirs is x_t on a
    path with alpha = 1. It needs many more calls than any other sampler here.
    """

    corrections: int = 5
    """At each level."""
    ratio: float = 0.16
    """Of signal to noise in a correction."""

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
            x = sum(there) / sum(here) * x
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
