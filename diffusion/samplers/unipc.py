"""UniPC: a step predicted from past answers, and corrected by the next one at no cost."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws, Sampler, along, half_log_snr

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_PLACES = (_NODES + 1) / 2


@dataclass(frozen=True, kw_only=True)
class UniPC(Sampler):
    """Order 1 to 3, one call a step (Zhao et al., 2023, Algorithms 5 and 6, with B(h) = e^h - 1).

    Each step is the line to a clean answer, as in `dpm`: the mean, weighted by e^lambda, of the polynomial in
    lambda = log(alpha / sigma) through the past answers. When the next step's answer is there, the step is
    taken again with it. The order is lower where there is less of a past, and before the end where lambda is
    infinite: the last step to clean latents is of order 1, as the authors have it.
    """

    order: int = 2
    """2 is best with few steps; 3 needs about 30."""

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 3:
            raise ValueError(f"order is {self.order}; UniPC has 1, 2 and 3.")

    @torch.no_grad()
    def solve(
        self,
        denoiser: AnyDenoiser,
        x: Float[Tensor, "b c h w"],
        times: Sequence[float],
        conditioning: Conditioning,
        draws: Draws | None = None,
    ) -> Float[Tensor, "b c h w"]:
        ladder = [denoiser.schedule.at(t) for t in times]
        places = [half_log_snr(*there) for there in ladder]
        past: list[tuple[float, Tensor]] = []  # lambda and answer, the newest first
        start, order = x, 0
        for n, t in enumerate(times[:-1]):
            clean = denoiser(x, t, conditioning)
            if n and past and math.isfinite(places[n]):
                corrected = _mean(past[0], [(places[n], clean), *past[1:order]], places[n])
                x = along(start, corrected, ladder[n - 1], ladder[n])
            past = [(places[n], clean), *past][: self.order] if math.isfinite(places[n]) else []
            order = min(len(past), len(times) - 1 - n) if places[-1] == math.inf else len(past)
            known = past[1:order] if math.isfinite(places[n + 1]) else []
            ahead = _mean(past[0], known, places[n + 1]) if known else clean
            start, x = x, along(x, ahead, ladder[n], ladder[n + 1])
        return x


def _mean(
    newest: tuple[float, Tensor], others: Sequence[tuple[float, Tensor]], there: float
) -> Float[Tensor, "b c h w"]:
    """The mean from the newest answer's lambda to `there` of the polynomial through all of them."""
    here, answer = newest
    weights = _weights(tuple(place - here for place, _ in others), there - here)
    mean = (1 - sum(weights)) * answer
    for weight, (_, other) in zip(weights, others, strict=True):
        mean = torch.add(mean, other, alpha=weight)
    return mean


@functools.lru_cache(maxsize=4096)
def _weights(places: tuple[float, ...], h: float) -> tuple[float, ...]:
    """Of answers at `places`: with them, the powers of lambda / h have the means that they have over a step.

    One power alone is given the mean 1/2 instead, as the authors have it.
    """
    powers = np.arange(1, len(places) + 1)
    if len(places) == 1:
        means = np.array([0.5])
    else:
        density = _WEIGHTS * np.exp(h * (_PLACES - (h > 0)))
        means = _PLACES ** powers[:, None] @ density / density.sum()
    return tuple(np.linalg.solve((np.array(places) / h) ** powers[:, None], means).tolist())
