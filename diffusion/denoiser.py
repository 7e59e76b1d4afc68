"""From a raw network to the function that samplers and losses know: noisy latents in, clean latents out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.noise import RectifiedFlow, Schedule, broadcast
from diffusion.preconditioning import FlowVelocity, Preconditioning


@runtime_checkable
class AnyDenoiser(Protocol):
    """Estimates E[x | x_t, conditioning]: a `Denoiser`, guidance around one, or an exact answer."""

    @property
    def schedule(self) -> Schedule:
        """The path that x_t lies on."""
        ...

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]: ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network with its preconditioning (Karras et al., 2022, Equation 7)."""

    network: Callable[[Tensor, Tensor, Conditioning], Tensor]
    """(c_in x_t: [b c h w], c_noise: [b], conditioning) to the raw output: [b c h w], in any dtype."""
    schedule: Schedule = field(default_factory=RectifiedFlow)
    preconditioning: Preconditioning = field(default_factory=FlowVelocity)

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Clean latents, in the precision of `x_t` and `t` even where the network's output has less."""
        c_skip, c_out, c_in, c_noise = self.preconditioning(self.schedule, t)
        output = self.network(broadcast(c_in, x_t) * x_t, c_noise, conditioning)
        return broadcast(c_skip, x_t) * x_t + broadcast(c_out, x_t) * output
