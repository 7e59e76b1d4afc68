"""Samplers and guidance that a recipe can choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffusion.denoiser import AnyDenoiser
    from diffusion.guidance import ClassifierFree
    from diffusion.samplers.euler import Euler
    from diffusion.samplers.heun import Heun


@dataclass(frozen=True, kw_only=True)
class EulerConfig:
    """First order: one call of the network a step."""

    kind: Literal["euler"] = "euler"
    steps: int = 50
    shift: float = 1.0
    """Above 1, more steps lie near the noise."""

    def build(self) -> Euler:
        from diffusion.samplers.euler import Euler

        return Euler(steps=self.steps, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class HeunConfig:
    """Second order: two calls of the network a step, and far fewer steps for the same error."""

    kind: Literal["heun"] = "heun"
    steps: int = 18
    shift: float = 1.0
    """Above 1, more steps lie near the noise."""

    def build(self) -> Heun:
        from diffusion.samplers.heun import Heun

        return Heun(steps=self.steps, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How far the conditions are followed, at the price of variety and of a second call of the network."""

    scale: float = 2.0
    """1 is no guidance."""
    interval: tuple[float, float] = (0.0, 1.0)
    """First and last time that is guided, 0 (image) to 1 (noise)."""

    def build(self, denoiser: AnyDenoiser) -> ClassifierFree:
        from diffusion.guidance import ClassifierFree

        return ClassifierFree(denoiser, scale=self.scale, interval=self.interval)


SamplerConfig = HeunConfig | EulerConfig
