"""How training draws the times at which noise is mixed in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.noise import Schedule, shifted


class Times(ABC):
    """The distribution of training times, as its quantile function.

    Evenly spread numbers in, evenly spread quantiles out: with `randomness.stratified`, every batch covers
    the whole distribution.
    """

    @abstractmethod
    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """u in (0, 1) to t in (0, 1), increasing."""


@dataclass(frozen=True, kw_only=True)
class Uniform(Times):
    """t ~ U(0, 1), then shifted."""

    shift: float = 1.0

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return shifted(u, self.shift)


@dataclass(frozen=True, kw_only=True)
class LogitNormal(Times):
    """logit(t) ~ N(mean, std^2), then shifted (Esser et al., 2024, Equation 19).

    Most times lie in the middle of the path, where the velocity is hardest to tell.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return shifted(torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)), self.shift)


@dataclass(frozen=True, kw_only=True)
class Chained(Times):
    """Other times, each moved up to the next timestep of a chain of `steps` (Ho et al., 2020): uniform ones
    give every timestep alike."""

    times: Times
    steps: int

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return ((self.times(u) * self.steps).floor() + 1).clamp(max=self.steps) / self.steps


@dataclass(frozen=True, kw_only=True)
class LogNormal(Times):
    """ln(sigma / alpha) ~ N(mean, std^2) on the path `schedule` (Karras et al., 2022, Table 1).

    On the rectified flow it is `LogitNormal`, since there sigma / alpha = t / (1 - t).
    """

    schedule: Schedule
    mean: float = -1.2
    std: float = 1.2

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return self.schedule.time(torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)))
