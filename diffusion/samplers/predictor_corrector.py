"""Steps of any sampler, each followed by Langevin dynamics that mend its error."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.langevin import corrected
from diffusion.samplers.sampler import Draws, OneStep, Sampler
from diffusion.samplers.spacing import Spacing


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler):
    """The predictor's calls a step, and `corrections` more but after the last (Song et al., 2021,
    "Score-based generative modeling through SDEs", Algorithm 1)."""

    predictor: OneStep
    """Its steps and their spacing are the whole's."""
    corrections: int = 1
    """At each level, after the step to it."""
    ratio: float = 0.16
    """Of signal to noise in a correction."""
    steps: int = field(init=False, repr=False)
    spacing: Spacing = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", self.predictor.steps)
        object.__setattr__(self, "spacing", self.predictor.spacing)

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
            number = n * (1 + self.corrections)
            x = self.predictor.step(denoiser, x, t, s, conditioning, draws, number)
            if denoiser.schedule.at(s)[1] > 0:
                x = corrected(
                    denoiser,
                    x,
                    s,
                    conditioning,
                    draws,
                    number=number + 1,
                    corrections=self.corrections,
                    ratio=self.ratio,
                )
        return x
