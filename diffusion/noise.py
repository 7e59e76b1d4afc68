"""How noise is mixed into latents, and how training draws the times at which it happens.

A schedule is the path x_t = alpha(t) x + sigma(t) z from clean latents x at t = 0 to noise z at t = 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def broadcast(coefficient: Float[Tensor, " b"], x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """One number a sample, shaped so that it multiplies `x`."""
    return coefficient.reshape(-1, *(1,) * (x.ndim - 1))


def shifted(t: Float[Tensor, "*s"], shift: float) -> Float[Tensor, "*s"]:
    """Times moved towards noise if shift > 1, as larger images need (Esser et al., 2024, Equation 23).

    Give training and sampling the same shift.
    """
    return shift * t / (1 + (shift - 1) * t)


class Schedule(ABC):
    """A path from clean latents to noise, for t in [0, 1]."""

    @abstractmethod
    def __call__(self, t: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        """(alpha, sigma) at time t."""

    @abstractmethod
    def derivative(self, t: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        """(d alpha/dt, d sigma/dt) at time t."""

    def perturb(
        self, x: Float[Tensor, " b *d"], z: Float[Tensor, " b *d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, " b *d"]:
        """x_t = alpha x + sigma z."""
        alpha, sigma = self(t)
        return broadcast(alpha, x) * x + broadcast(sigma, x) * z

    def velocity(
        self, x_t: Float[Tensor, " b *d"], x: Float[Tensor, " b *d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, " b *d"]:
        """dx_t/dt on the path through x_t whose clean end is x; t > 0.

        v = alpha' x + sigma' z, where z = (x_t - alpha x) / sigma (Lipman et al., 2023, Theorem 3). With a
        denoiser's E[x | x_t] for x it is the right-hand side of the probability flow ODE.
        """
        alpha, sigma = self(t)
        d_alpha, d_sigma = self.derivative(t)
        rate = d_sigma / sigma
        return broadcast(rate, x) * x_t + broadcast(d_alpha - alpha * rate, x) * x


class RectifiedFlow(Schedule):
    """The straight path alpha = 1 - t, sigma = t, whose velocity is z - x (Liu et al., 2023, Equation 1)."""

    def __call__(self, t: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        return 1 - t, t

    def derivative(self, t: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        return -torch.ones_like(t), torch.ones_like(t)


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
