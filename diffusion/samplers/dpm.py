"""DPM-Solver++: what two answers say about the next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws, Sampler, along, half_log_snr


@dataclass(frozen=True, kw_only=True)
class DPM(Sampler):
    """DPM-Solver++(2M): second order, one call a step (Lu et al., 2022, "DPM-Solver++", Algorithm 2).

    With lambda = log(alpha / sigma) and its change h, x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) D
    is the line to a clean answer, and D = x̂ + h / (2 h') (x̂ - x̂') the answer in the middle of the step, from
    that of the step before. First order where h is infinite, to clean latents and from pure noise; after the
    latter, where h' is, the answer is taken to be linear in alpha / sigma: D = x̂ + (e^h - 1) / 2 (x̂ - x̂').
    """

    @torch.no_grad()
    def solve(
        self,
        denoiser: AnyDenoiser,
        x: Float[Tensor, "b c h w"],
        times: Sequence[float],
        conditioning: Conditioning,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b c h w"]:
        before, previous = math.inf, None
        for t, s in itertools.pairwise(times):
            here, there = denoiser.schedule.at(t), denoiser.schedule.at(s)
            h = half_log_snr(*there) - half_log_snr(*here)
            clean = ahead = denoiser(x, t, conditioning)
            if previous is not None and math.isfinite(h):
                further = h / before if math.isfinite(before) else math.expm1(h)
                ahead = torch.lerp(previous, clean, 1 + further / 2)
            x = along(x, ahead, here, there)
            before, previous = h, clean
        return x
