"""Held-out images beside what autoencoders make of them: how much their latents keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pipelines.scoring.features import EfficientNetFeatures, FeaturesConfig
from pipelines.stage import Input, Kind, Session, Stage


@dataclass(frozen=True, kw_only=True)
class EvaluateAutoencoder(Stage):
    """Scores the reconstructions of autoencoders on the same images. Writes metrics.json and a picture.

    PSNR in dB, SSIM, LPIPS-HED (how different an image looks from its original), each with a 95 % interval
    over images, and KID-EffLite0 x 1000 between reconstructions and originals, beside that between two halves
    of the originals. A network that was in an autoencoder's loss does not judge that autoencoder.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "report"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    models: Annotated[tuple[str, ...], Input("snapshot")]
    """Autoencoders, or models that hold one; the first is the one that the verdict is about."""
    split: Literal["validation", "test"] | None = None
    """Where its images are held out; test, or validation where there is no test split, if None."""
    count: int = 1_000
    """Images, at most."""
    features: FeaturesConfig = EfficientNetFeatures()
    seed: int = 0
    micro_batch: int = 8
    """Images a forward call, which the last is padded to: float results depend on it."""
    bootstrap: int = 1_000
    """Resamples of every interval."""
    shown: int = 8
    """Images in the picture."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("evaluate_autoencoder needs at least one of `models`.")
        for name in ("count", "micro_batch", "bootstrap", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def external(self) -> dict[str, str]:
        from pipelines import weights

        found = {name: weights.digest(name) for name in ("hed", "lpips-heads")}
        return found | {"features": self.features.identity()}

    def summary(self) -> str:
        return f"{' and '.join(self.models)}, up to {self.count:,} {self.split or 'held-out'} images"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.scoring.reconstruction import AutoencoderEvaluation

        return AutoencoderEvaluation(self, session).run()
