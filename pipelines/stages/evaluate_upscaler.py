"""Held-out images shrunk and enlarged again, beside bicubic enlargement: what upscalers are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from diffusion.config import HeunConfig, SamplerConfig
from pipelines.stage import Input, Kind, Session, Stage


@dataclass(frozen=True, kw_only=True)
class EvaluateUpscaler(Stage):
    """Scores upscalers of one factor on the same images. Writes metrics.json and a picture.

    Three measures, each with a 95 % interval over images and paired with bicubic enlargement:
    LPIPS-HED (how different it looks from the original; less is better), PSNR of the luma in dB (how far the
    pixels lie apart; regression is unbeaten in it by nature), and consistency, the PSNR in dB between the
    result shrunk again and the small image.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "report"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    """Originals, in the size that the upscalers make."""
    models: Annotated[tuple[str, ...], Input("snapshot")]
    """Upscalers; the first is the one that the verdict is about."""
    split: Literal["validation", "test"] = "test"
    count: int = 400
    """Images, at most."""
    level: float = 0.0
    """Noise mixed into the small images; see `upscale`."""
    sampler: SamplerConfig = HeunConfig(steps=8)
    seed: int = 0
    micro_batch: int = 8
    """Images a forward call, which the last is padded to: float results depend on it."""
    bootstrap: int = 1_000
    """Resamples of every interval."""
    shown: int = 8
    """Images in the picture."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("evaluate_upscaler needs at least one of `models`.")
        for name in ("count", "micro_batch", "bootstrap", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def external(self) -> dict[str, str]:
        from pipelines import weights

        return {name: weights.digest(name) for name in ("hed", "lpips-heads")}

    def summary(self) -> str:
        return f"{' and '.join(self.models)} beside bicubic, up to {self.count:,} {self.split} images"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.scoring.upscaling import UpscalerEvaluation

        return UpscalerEvaluation(self, session).run()
