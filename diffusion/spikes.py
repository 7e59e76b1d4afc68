"""Gradients out of all proportion, told from the usual ones without asking the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DECAY = 0.98
"""Of a step's weight in the average, with each good step after it."""
ENOUGH = 10.0
"""Weight of the good steps seen, about their number at first, before which nothing is told."""


@dataclass(kw_only=True, eq=False)
class Spikes:
    """Knows the typical norm of a training's gradient: exp of a running average of log norms of good steps.

    A norm has no scale that is known beforehand, and falls over training; so it is compared with itself.
    """

    limit: float
    """A norm above so many times the typical one is a spike."""
    seen: Float[Tensor, " 2"]
    """Weighted sum of log norms, and sum of the weights; on the device, the same on all ranks."""

    @classmethod
    def start(cls, limit: float, *, device: torch.device) -> Spikes:
        return cls(limit=limit, seen=torch.zeros(2, device=device))

    @property
    def typical(self) -> Float[Tensor, ""]:
        """NaN before the first good step."""
        return (self.seen[0] / self.seen[1]).exp()

    def among(self, norm: Float[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether this norm is a spike."""
        total, weight = self.seen.unbind()
        return (weight >= ENOUGH) & (norm.log() > total / weight + math.log(self.limit))

    def see(self, norm: Float[Tensor, ""], good: Bool[Tensor, ""]) -> None:
        """Of a step, of which those that are not `good` do not count."""
        logarithm = norm.log().float()
        new = DECAY * self.seen + torch.stack([logarithm, torch.ones_like(logarithm)])
        self.seen = torch.where(good & logarithm.isfinite(), new, self.seen)
