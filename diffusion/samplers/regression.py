"""No sampling at all: the one answer of a network that was trained by regression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws


@dataclass(frozen=True)
class Regression:
    """What `losses.regression` trains: neither noise nor draws are looked at."""

    def __call__(
        self,
        denoiser: AnyDenoiser,
        noise: Float[Tensor, "b c h w"],
        conditioning: Conditioning,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b c h w"]:
        with torch.no_grad():
            return denoiser(torch.zeros_like(noise), noise.new_ones(len(noise)), conditioning)
