"""What a raw network predicts, written as how its output is scaled into clean latents.

x̂ = c_skip x_t + c_out F(c_in x_t, c_noise): Karras et al., 2022, Equation 7. Each holds on any schedule; z is
the noise in x_t = alpha x + sigma z.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Coefficients(NamedTuple):
    """One number a sample each, [b]; or one of all, []."""

    c_skip: Float[Tensor, "*b"]
    c_out: Float[Tensor, "*b"]
    c_in: Float[Tensor, "*b"]
    c_noise: Float[Tensor, "*b"]


class Preconditioning(ABC):
    """Scales a network's input and output."""

    at_noise: bool = True
    """Whether it holds where alpha is 0 and the input is noise alone."""

    @abstractmethod
    def __call__(
        self, alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"], t: Float[Tensor, "*b"]
    ) -> Coefficients: ...


class FlowVelocity(Preconditioning):
    """F = z - x, the velocity on the straight path; the network is told t (Lipman et al., 2023).

    x̂ = (x_t - sigma F) / (alpha + sigma), on the rectified flow x_t - t F.
    """

    def __call__(
        self, alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"], t: Float[Tensor, "*b"]
    ) -> Coefficients:
        scale = 1 / (alpha + sigma)
        return Coefficients(c_skip=scale, c_out=-sigma * scale, c_in=scale, c_noise=t)


class Velocity(Preconditioning):
    """F = alpha z - sigma x where alpha^2 + sigma^2 = 1 (Salimans and Ho, 2022, Appendix D).

    x̂ = alpha x_t - sigma F there; elsewhere both are divided by alpha^2 + sigma^2, and F with its root.
    """

    def __call__(
        self, alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"], t: Float[Tensor, "*b"]
    ) -> Coefficients:
        norm = torch.hypot(alpha, sigma)
        return Coefficients(c_skip=alpha / norm**2, c_out=-sigma / norm, c_in=1 / norm, c_noise=t)


class Noise(Preconditioning):
    """F = z, "epsilon": x̂ = (x_t - sigma F) / alpha (Ho et al., 2020, Equation 15); not where alpha is 0."""

    at_noise = False

    def __call__(
        self, alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"], t: Float[Tensor, "*b"]
    ) -> Coefficients:
        c_in = 1 / torch.hypot(alpha, sigma)
        return Coefficients(c_skip=1 / alpha, c_out=-sigma / alpha, c_in=c_in, c_noise=t)


class Clean(Preconditioning):
    """F = x, the clean latents themselves."""

    def __call__(
        self, alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"], t: Float[Tensor, "*b"]
    ) -> Coefficients:
        c_in = 1 / torch.hypot(alpha, sigma)
        return Coefficients(c_skip=torch.zeros_like(t), c_out=torch.ones_like(t), c_in=c_in, c_noise=t)


@dataclass(frozen=True, kw_only=True)
class EDM(Preconditioning):
    """Input, output and target with unit variance at every level of noise (Karras et al., 2022, Table 1).

    With s = sigma / alpha, x̂ = d^2 / (s^2 + d^2) x_t / alpha + s d / sqrt(s^2 + d^2) F, and the network is
    told ln(s) / 4. Written without division by alpha, so that it holds at pure noise too (but for c_noise).
    """

    data_std: float = 1.0
    """d, of the clean latents: 1 if they are whitened."""
    at_noise = False

    def __call__(
        self, alpha: Float[Tensor, "*b"], sigma: Float[Tensor, "*b"], t: Float[Tensor, "*b"]
    ) -> Coefficients:
        d = self.data_std
        variance = sigma**2 + (alpha * d) ** 2
        return Coefficients(
            c_skip=alpha * d**2 / variance,
            c_out=sigma * d / variance.sqrt(),
            c_in=1 / variance.sqrt(),
            c_noise=(sigma / alpha).log() / 4,
        )
