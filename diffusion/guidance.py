"""Guidance: denoisers around a denoiser, so that no sampler knows of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.noise import Schedule, broadcast


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """Extrapolates from the unconditional to the conditional answer (Ho and Salimans, 2022, Equation 6).

    x̂ = x̂_null + scale (x̂_cond - x̂_null), so that scale 1 is no guidance.
    """

    denoiser: AnyDenoiser
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    """Times lo <= t <= hi that are guided; the others cost one call, not two (Kynkäänniemi et al., 2024)."""

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        lo, hi = self.interval
        guided = (lo <= t) & (t <= hi)
        # Asking the device costs one sync a call; a second pass of the network would cost far more.
        if conditioning.empty or self.scale == 1 or not guided.any():
            return self.denoiser(x_t, t, conditioning)
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), conditioning.cat(conditioning.null()))
        conditional, unconditional = both.chunk(2)
        scale = torch.where(guided, self.scale, 1.0).to(x_t.dtype)
        return unconditional + broadcast(scale, x_t) * (conditional - unconditional)
