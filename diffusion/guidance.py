"""Guidance: denoisers around a denoiser, so that no sampler knows of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser, On
from diffusion.noise import Schedule, Time, broadcast


@dataclass(frozen=True, eq=False)
class Guidance(ABC):
    """Extrapolates from a worse answer to a better one: x̂ = worse + scale (better - worse).

    Scale 1 is no guidance. A subclass says which two answers; outside the interval there is but one.
    """

    denoiser: AnyDenoiser
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    """Times lo <= t <= hi that are guided; the others cost one call, not two (Kynkäänniemi et al., 2024)."""
    rescale: float = field(default=0.0, kw_only=True)
    """Share, 0 to 1, of the answer whose contrast is brought back to that of the better one (Lin et al.,
    2024, Equations 15 and 16, on clean latents): large scales overexpose."""

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        lo, hi = self.interval
        if self.scale == 1 or self.idle(conditioning) or (not isinstance(t, Tensor) and not lo <= t <= hi):
            return self.denoiser(x_t, t, conditioning)
        better, worse = self.pair(x_t, t, conditioning)
        guided = torch.lerp(worse, better, self.scale)
        if self.rescale:
            contrast = better.flatten(1).std(1) / guided.flatten(1).std(1)
            guided = guided * broadcast(torch.lerp(torch.ones_like(contrast), contrast, self.rescale), guided)
        if isinstance(t, Tensor):
            # Each row has a time of its own: both answers are there, so that nothing waits for the device.
            times = broadcast(t, x_t)
            guided = torch.where((lo <= times) & (times <= hi), guided, better)
        return guided

    def idle(self, conditioning: Conditioning) -> bool:
        """Whether both answers would be the same."""
        return False

    @abstractmethod
    def pair(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """The better answer and the worse one."""


@dataclass(frozen=True, eq=False)
class ClassifierFree(Guidance):
    """Away from the unconditional answer, both from one call (Ho and Salimans, 2022, Equation 6)."""

    def idle(self, conditioning: Conditioning) -> bool:
        return conditioning.empty

    def pair(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        times = torch.cat([t, t]) if isinstance(t, Tensor) else t
        both = self.denoiser(torch.cat([x_t, x_t]), times, conditioning.cat(conditioning.null()))
        conditional, unconditional = both.chunk(2)
        return conditional, unconditional


@dataclass(frozen=True, eq=False)
class Autoguidance(Guidance):
    """Away from a worse model's answer to the same question (Karras et al., 2024, "Guiding a diffusion model
    with a bad version of itself", Equation 5): a smaller one, or the same after less training.

    It needs no unconditional answers, and composes: its denoiser may be a `ClassifierFree` one.
    """

    worse: AnyDenoiser = field(kw_only=True)
    """On any path: it is asked on this one's."""

    def pair(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        worse = self.worse if self.worse.schedule is self.schedule else On(self.worse, self.schedule)
        return self.denoiser(x_t, t, conditioning), worse(x_t, t, conditioning)
