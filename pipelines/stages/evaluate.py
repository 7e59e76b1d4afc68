"""Judges generated images against real ones, and a model by what it has learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pipelines.scoring.features import EfficientNetFeatures, FeaturesConfig
from pipelines.stage import KEEP, Input, Kind, Session, Stage, added


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Scores with intervals and with their floor, real images against real ones, and nearest neighbours."""

    version: ClassVar[int] = 2
    output: ClassVar[Kind] = "report"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image", "cls"))]
    """Real images: the training split is what is compared with, the held-out splits are the floor."""
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage over the real images: only those that it keeps are compared with."""
    generated: Annotated[str | None, Input("dataset", ("image",))] = None
    model: Annotated[str | None, Input("snapshot")] = None
    """Adds reconstructions, an untrained network, and with `latents` whether its conditions matter."""
    latents: Annotated[str | None, Input("dataset", ("moments.npy",))] = None
    text: Annotated[str | None, Input("dataset", ("text.json", "text.npy", "pooled.npy"))] = None
    """Embeddings of the captions, as the model was trained with."""
    features: FeaturesConfig = field(default_factory=EfficientNetFeatures)
    """What the images are compared by."""
    count: int = 2000
    """Images, at most, of each set."""
    references: int = 10_000
    """Training images, at most, among which a generated image's nearest is looked for."""
    untrained: int = 96
    """Images of the same network before training, as a reference; none if 0."""
    losses: int = 256
    """Held-out samples, at most, whose loss is taken with true and with shuffled conditions."""
    draws: int = 4
    """Times and noises of each of these samples."""
    bootstrap: int = 1000
    """Resamples of every interval."""
    shown: int = 12
    """Pairs in a picture of nearest neighbours."""
    micro_batch: int = 16
    """Images in one forward call."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.generated is None and self.model is None:
            raise ValueError("evaluate needs something to judge: set `generated`, `model` or both.")
        if self.count < 8 or self.micro_batch < 1 or self.draws < 1:
            raise ValueError("evaluate: count is at least 8, micro_batch and draws at least 1.")

    def external(self) -> dict[str, str]:
        return {"features": self.features.identity()}

    def summary(self) -> str:
        return f"KID-{self.features.label}, coverage, nearest neighbours of up to {self.count:,} images"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.scoring.evaluation import Evaluation

        return Evaluation(self, session).run()
