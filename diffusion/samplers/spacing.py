"""Where a sampler's steps lie: the times from noise down to 0, for any schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from diffusion.noise import Schedule, shifted


class Spacing(ABC):
    """A ladder of times."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> list[float]:
        """`steps + 1` times of the schedule, falling, the last one 0. No step is empty: where the schedule
        ends in less noise than is asked for, the ladder begins at its end."""


@dataclass(frozen=True, kw_only=True)
class Even(Spacing):
    """Evenly from 1 to 0, then shifted: above 1, more of them lie near the noise.

    On a discrete chain this is "trailing" (Lin et al., 2024, Section 3.3), which begins at its last timestep.
    """

    shift: float = 1.0

    def __call__(self, schedule: Schedule, steps: int) -> list[float]:
        return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), self.shift).tolist()


@dataclass(frozen=True, kw_only=True)
class Leading(Spacing):
    """Each (chain // steps)-th timestep of a discrete chain from `offset` on, then 0 (Song et al., 2021,
    "DDIM", Appendix D.3): as older pipelines have it. It never sees the chain's last, noisiest timesteps."""

    chain: int = 1000
    """Timesteps that the model was trained with."""
    offset: int = 0
    """Added to each timestep; Stable Diffusion has 1."""

    def __call__(self, schedule: Schedule, steps: int) -> list[float]:
        timesteps = np.arange(steps)[::-1] * (self.chain // steps) + self.offset
        return [*((timesteps + 1) / self.chain).tolist(), 0.0]


@dataclass(frozen=True, kw_only=True)
class Karras(Spacing):
    """s = sigma / alpha with s^(1/rho) evenly from high to low, then 0 (Karras et al., 2022, Equation 5)."""

    rho: float = 7.0
    low: float = 0.002
    high: float = 80.0

    def __call__(self, schedule: Schedule, steps: int) -> list[float]:
        high = min(self.high, _last(schedule))
        return _times(
            schedule, np.linspace(high ** (1 / self.rho), self.low ** (1 / self.rho), steps) ** self.rho
        )


@dataclass(frozen=True, kw_only=True)
class LogSNR(Spacing):
    """s = sigma / alpha evenly in its logarithm from high to low, then 0 (Lu et al., 2022, Section 3.4)."""

    low: float = 0.002
    high: float = 80.0

    def __call__(self, schedule: Schedule, steps: int) -> list[float]:
        return _times(schedule, np.geomspace(min(self.high, _last(schedule)), self.low, steps))


def _last(schedule: Schedule) -> float:
    """sigma / alpha at time 1."""
    alpha, sigma = schedule.at(1.0)
    return sigma / alpha if alpha else math.inf


def _times(schedule: Schedule, ratios: np.ndarray) -> list[float]:
    return [*schedule.time(torch.from_numpy(ratios / (1 + ratios))).tolist(), 0.0]
