"""Samplers and guidance that a recipe can choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffusion.denoiser import AnyDenoiser
    from diffusion.guidance import ClassifierFree
    from diffusion.samplers.euler import Euler
    from diffusion.samplers.heun import Heun
    from diffusion.samplers.spacing import Spacing

SpacingName = Literal["even", "karras", "log_snr"]


@dataclass(frozen=True, kw_only=True)
class EulerConfig:
    """First order: one call of the network a step."""

    kind: Literal["euler"] = "euler"
    steps: int = 50
    shift: float = 1.0
    """Above 1, more of evenly spaced steps lie near the noise."""
    spacing: SpacingName = "even"
    """Of the steps: even in time, or as Karras et al. have it, or in the logarithm of the noise."""

    def build(self) -> Euler:
        from diffusion.samplers.euler import Euler

        return Euler(steps=self.steps, spacing=_spacing(self.spacing, self.shift))


@dataclass(frozen=True, kw_only=True)
class HeunConfig:
    """Second order: two calls of the network a step, and far fewer steps for the same error."""

    kind: Literal["heun"] = "heun"
    steps: int = 18
    shift: float = 1.0
    """Above 1, more of evenly spaced steps lie near the noise."""
    spacing: SpacingName = "even"
    """Of the steps: even in time, or as Karras et al. have it, or in the logarithm of the noise."""
    churn: float = 0.0
    """Noise added on the way, which corrects errors in many steps; 0 adds none."""

    def build(self) -> Heun:
        from diffusion.samplers.heun import Heun

        return Heun(steps=self.steps, spacing=_spacing(self.spacing, self.shift), churn=self.churn)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How far the conditions are followed, at the price of variety and of a second call of the network."""

    scale: float = 2.0
    """1 is no guidance."""
    interval: tuple[float, float] = (0.0, 1.0)
    """First and last time that is guided, 0 (image) to 1 (noise)."""
    rescale: float = 0.0
    """How far the contrast that guidance adds is taken back, 0 to 1."""

    def build(self, denoiser: AnyDenoiser) -> ClassifierFree:
        from diffusion.guidance import ClassifierFree

        return ClassifierFree(denoiser, scale=self.scale, interval=self.interval, rescale=self.rescale)


SamplerConfig = HeunConfig | EulerConfig


def _spacing(name: SpacingName, shift: float) -> Spacing:
    from diffusion.samplers.spacing import Even, Karras, LogSNR

    return {"even": Even(shift=shift), "karras": Karras(), "log_snr": LogSNR()}[name]
