"""What a raw network predicts, written as how its output is scaled into clean latents.

x̂ = c_skip x_t + c_out F(c_in x_t, c_noise): Karras et al., 2022, Equation 7.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.noise import Schedule


class Coefficients(NamedTuple):
    """One number a sample each."""

    c_skip: Float[Tensor, " b"]
    c_out: Float[Tensor, " b"]
    c_in: Float[Tensor, " b"]
    c_noise: Float[Tensor, " b"]


class Preconditioning(ABC):
    """Scales a network's input and output."""

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Float[Tensor, " b"]) -> Coefficients: ...


class FlowVelocity(Preconditioning):
    """The network predicts v = alpha' x + sigma' z and is told t.

    Solved with x_t = alpha x + sigma z for x: x = (sigma' x_t - sigma v) / (alpha sigma' - sigma alpha'). On
    the rectified flow this is x_t - t v.
    """

    def __call__(self, schedule: Schedule, t: Float[Tensor, " b"]) -> Coefficients:
        alpha, sigma = schedule(t)
        d_alpha, d_sigma = schedule.derivative(t)
        determinant = alpha * d_sigma - sigma * d_alpha
        return Coefficients(
            c_skip=d_sigma / determinant, c_out=-sigma / determinant, c_in=torch.ones_like(t), c_noise=t
        )
