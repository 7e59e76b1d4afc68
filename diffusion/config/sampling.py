"""Samplers and guidance that a recipe can choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diffusion.config.later import later

if TYPE_CHECKING:
    from diffusion.denoiser import AnyDenoiser
    from diffusion.guidance import ClassifierFree
    from diffusion.samplers.ddim import DDIM
    from diffusion.samplers.ddpm import DDPM
    from diffusion.samplers.dpm import DPM
    from diffusion.samplers.euler import Euler
    from diffusion.samplers.heun import Heun
    from diffusion.samplers.predictor_corrector import PredictorCorrector
    from diffusion.samplers.spacing import Spacing
    from diffusion.samplers.unipc import UniPC

SpacingName = Literal["even", "karras", "log_snr"]


@dataclass(frozen=True, kw_only=True)
class _Ladder:
    steps: int = 50
    shift: float = 1.0
    """Above 1, more of evenly spaced steps lie near the noise."""
    spacing: SpacingName = later("even")
    """Of the steps: even in time, or as Karras et al. have it, or in the logarithm of the noise."""

    @property
    def calls(self) -> int:
        """Of the network, for one picture without guidance."""
        return self.steps

    def _spacing(self) -> Spacing:
        from diffusion.samplers.spacing import Even, Karras, LogSNR

        return {"even": Even(shift=self.shift), "karras": Karras(), "log_snr": LogSNR()}[self.spacing]


@dataclass(frozen=True, kw_only=True)
class EulerConfig(_Ladder):
    """First order: one call of the network a step."""

    kind: Literal["euler"] = "euler"

    def build(self) -> Euler:
        from diffusion.samplers.euler import Euler

        return Euler(steps=self.steps, spacing=self._spacing())


@dataclass(frozen=True, kw_only=True)
class HeunConfig(_Ladder):
    """Second order: two calls of the network a step, and far fewer steps for the same error."""

    kind: Literal["heun"] = "heun"
    steps: int = 18
    churn: float = later(0.0)
    """Noise added on the way, which corrects errors in many steps; 0 adds none."""

    @property
    def calls(self) -> int:
        return 2 * self.steps - 1

    def build(self) -> Heun:
        from diffusion.samplers.heun import Heun

        return Heun(steps=self.steps, spacing=self._spacing(), churn=self.churn)


@dataclass(frozen=True, kw_only=True)
class DPMConfig(_Ladder):
    """DPM-Solver++ 2M: second order with one call of the network a step."""

    kind: Literal["dpm"] = "dpm"
    steps: int = 20

    def build(self) -> DPM:
        from diffusion.samplers.dpm import DPM

        return DPM(steps=self.steps, spacing=self._spacing())


@dataclass(frozen=True, kw_only=True)
class UniPCConfig(_Ladder):
    """Like DPM-Solver++, each step corrected by the next one's answer: the least error a call."""

    kind: Literal["unipc"] = "unipc"
    steps: int = 20
    order: int = 2
    """1 to 3; the highest needs about 30 steps."""

    def build(self) -> UniPC:
        from diffusion.samplers.unipc import UniPC

        return UniPC(steps=self.steps, spacing=self._spacing(), order=self.order)


@dataclass(frozen=True, kw_only=True)
class DDIMConfig(_Ladder):
    """First order, with fresh noise on the way if eta is above 0."""

    kind: Literal["ddim"] = "ddim"
    eta: float = 0.0
    """0 adds no noise, and is Euler's method; 1 adds as much as DDPM."""

    def build(self) -> DDIM:
        from diffusion.samplers.ddim import DDIM

        return DDIM(steps=self.steps, spacing=self._spacing(), eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(_Ladder):
    """Ancestral sampling: fresh noise at every step, which corrects errors in many of them."""

    kind: Literal["ddpm"] = "ddpm"
    steps: int = 250
    variance: Literal["small", "large"] = "small"
    """Of the noise: the posterior's, or that for latents of standard normal noise, better in few steps."""

    def build(self) -> DDPM:
        from diffusion.samplers.ddpm import DDPM

        return DDPM(steps=self.steps, spacing=self._spacing(), variance=self.variance)


@dataclass(frozen=True, kw_only=True)
class PredictorCorrectorConfig(_Ladder):
    """Euler's steps, each followed by Langevin corrections that add noise and denoise."""

    kind: Literal["predictor_corrector"] = "predictor_corrector"
    corrections: int = 1
    """After each step but the last; each costs a call of the network."""
    ratio: float = 0.16
    """Of signal to noise in a correction: the larger, the more is changed."""

    @property
    def calls(self) -> int:
        return self.steps + (self.steps - 1) * self.corrections

    def build(self) -> PredictorCorrector:
        from diffusion.samplers.euler import Euler
        from diffusion.samplers.predictor_corrector import PredictorCorrector

        predictor = Euler(steps=self.steps, spacing=self._spacing())
        return PredictorCorrector(predictor=predictor, corrections=self.corrections, ratio=self.ratio)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How far the conditions are followed, at the price of variety and of a second call of the network."""

    scale: float = 2.0
    """1 is no guidance."""
    interval: tuple[float, float] = (0.0, 1.0)
    """First and last time that is guided, 0 (image) to 1 (noise)."""
    rescale: float = later(0.0)
    """How far the contrast that guidance adds is taken back, 0 to 1."""

    def build(self, denoiser: AnyDenoiser) -> ClassifierFree:
        from diffusion.guidance import ClassifierFree

        return ClassifierFree(denoiser, scale=self.scale, interval=self.interval, rescale=self.rescale)


SamplerConfig = (
    HeunConfig | EulerConfig | DPMConfig | UniPCConfig | DDIMConfig | DDPMConfig | PredictorCorrectorConfig
)
