"""From a raw network to the function that samplers and losses know: noisy latents in, clean latents out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.noise import RectifiedFlow, Schedule, Time, broadcast
from diffusion.preconditioning import Coefficients, FlowVelocity, Preconditioning


@runtime_checkable
class AnyDenoiser(Protocol):
    """Estimates E[x | x_t, conditioning]: a `Denoiser`, guidance around one, or an exact answer."""

    @property
    def schedule(self) -> Schedule:
        """The path that x_t lies on."""
        ...

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]: ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network with its preconditioning (Karras et al., 2022, Equation 7).

    Raises:
        ValueError: the schedule ends in noise alone, of which the preconditioning can make nothing.
    """

    network: Callable[[Tensor, Tensor, Conditioning], Tensor]
    """(c_in x_t: [b c h w], c_noise: [b], conditioning) to the raw output: [b c h w], in any dtype."""
    schedule: Schedule = field(default_factory=RectifiedFlow)
    preconditioning: Preconditioning = field(default_factory=FlowVelocity)

    def __post_init__(self) -> None:
        if not self.preconditioning.at_noise and self.schedule.at(1.0)[0] == 0:
            kind, path = type(self.preconditioning).__name__, type(self.schedule).__name__
            raise ValueError(
                f"{kind} says nothing where there is no signal, at the end of {path}: "
                "take FlowVelocity, Velocity or Clean."
            )

    def coefficients(self, t: Time, x_t: Float[Tensor, "b ..."]) -> Coefficients:
        """One number each for all rows, in double precision on the CPU, or one a row."""
        if not isinstance(t, Tensor):
            t = torch.tensor(t, dtype=torch.float64)
        return self.preconditioning(*self.schedule(t), t)

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Clean latents, in the precision of `x_t` even where the network's output has less."""
        c_skip, c_out, c_in, c_noise = self.coefficients(t, x_t)
        told = c_noise if c_noise.ndim else x_t.new_full((len(x_t),), float(c_noise))
        output = self.network(broadcast(c_in, x_t) * x_t, told, conditioning)
        return broadcast(c_skip, x_t) * x_t + broadcast(c_out, x_t) * output.to(x_t.dtype)


@dataclass(frozen=True, eq=False)
class On:
    """A denoiser on another path than its own: the same place, and latents scaled to it.

    Where the path has more noise than its own ever has, it is asked at its own last time.
    """

    denoiser: AnyDenoiser
    schedule: Schedule

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        own = self.denoiser.schedule
        if isinstance(t, Tensor):
            alpha, sigma = self.schedule(t)
            its = own.time(sigma / (alpha + sigma))
            a, s = own(its)
            scale = broadcast((a + s) / (alpha + sigma), x_t)
        else:
            its = own.time_at(self.schedule.place(t))
            scale = sum(own.at(its)) / sum(self.schedule.at(t))
        return self.denoiser(scale * x_t, its, conditioning)
