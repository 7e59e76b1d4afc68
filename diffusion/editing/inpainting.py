"""Inpainting by replacement, with or without resampling: for a denoiser that was trained on whole images."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws, Sampler


@dataclass(frozen=True, kw_only=True)
class RePaint:
    """Known latents, noised to where the sampler stands, replace what it drew there (Lugmayr et al., 2022,
    Algorithm 1).

    What it drew did not know them, so the seam is wrong, and noise is added again for the rest to agree: with
    more resamplings the draws come closer to those of `Measured`, which costs backward passes instead, but
    they never quite arrive. One resampling is plain replacement (Song et al., 2021, Appendix I.2): cheap, and
    biased, as what is unknown is drawn almost as if nothing were known.

    Raises:
        ValueError: there is no rung to jump from, so that resampling would do nothing.
    """

    sampler: Sampler
    """Its steps and spacing are the ladder. Each step starts anew: a multistep sampler is of first order."""
    resamplings: int = 10
    """How often each stretch of the ladder is walked."""
    jump: int = 10
    """Rungs of a stretch."""

    def __post_init__(self) -> None:
        if self.resamplings > 1 and self.jump >= self.sampler.steps:
            raise ValueError(f"{self.sampler.steps} steps have no jump of {self.jump}: take a shorter one.")

    @torch.no_grad()
    def __call__(
        self,
        denoiser: AnyDenoiser,
        noise: Float[Tensor, "b c h w"],
        known: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "#b #c h w"],
        conditioning: Conditioning,
        draws: Draws,
    ) -> Float[Tensor, "b c h w"]:
        """Latents that are `known`, to the last bit, where `mask` is True, and drawn elsewhere."""
        times = self.sampler.spacing(denoiser.schedule, self.sampler.steps)
        rungs = [denoiser.schedule.at(t) for t in times]
        number = itertools.count()
        x = rungs[0][1] * noise
        for here, there in self._walk(len(times) - 1):
            (alpha, sigma), (a, s) = rungs[here], rungs[there]
            if there < here:
                added = math.sqrt(max(0.0, s**2 - (a / alpha * sigma) ** 2))
                x = (a / alpha) * x + added * draws(next(number))
                continue
            # The sampler numbers its draws from 0 in each step; here each is one of its own.
            its = collections.defaultdict(number.__next__)
            x = self.sampler.solve(
                denoiser, x, [times[here], times[there]], conditioning, lambda n, its=its: draws(its[n])
            )
            noised = a * known + s * draws(next(number)) if s else known
            x = torch.where(mask, noised, x)
        return x

    def _walk(self, steps: int) -> Iterator[tuple[int, int]]:
        """Pairs of rungs, 0 being noise: one further, or `jump` back, as in the authors' code."""
        left = dict.fromkeys(range(0, steps - self.jump, self.jump), self.resamplings - 1)
        rung = 0
        while rung < steps:
            yield rung, rung + 1
            rung += 1
            if left.get(steps - rung, 0):
                left[steps - rung] -= 1
                yield rung, rung - self.jump
                rung -= self.jump
