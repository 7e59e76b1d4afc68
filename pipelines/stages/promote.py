"""A snapshot against the champion of a registered model: the alias moves, or it is said why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from diffusion.config import GuidanceConfig, HeunConfig, SamplerConfig
from pipelines.scoring.features import EfficientNetFeatures, FeaturesConfig
from pipelines.stage import Input, Inputs, Kind, Session, Stage

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipelines.runner.artifacts import Source


@dataclass(frozen=True, kw_only=True)
class Promote(Stage):
    """Lets a candidate and the champion draw the same images, and makes the better one champion.

    Both get the captions and classes of the validation split, the same noise for each image and the same
    sampler; their images are compared with the validation images, pair by pair, and so are their held-out
    losses. The test split is not looked at: it stays unused by any choice. The first candidate of a model
    becomes champion if it is sound. "Not promoted" is an end like any other.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "report"
    accelerated: ClassVar[bool] = True

    candidate: Annotated[str, Input("snapshot")]
    model: str
    """Name in MLflow's registry of the model whose alias `champion` may move; it need not exist yet."""
    images: Annotated[str, Input("dataset", ("image", "cls"))]
    """Real images, and their classes."""
    captions: Annotated[str | None, Input("dataset", ("captions.json",))] = None
    """What models that read text are asked for."""
    latents: Annotated[str | None, Input("dataset", ("moments.npy",))] = None
    """Adds the held-out loss, where both models have been trained on latents like these."""
    text: Annotated[str | None, Input("dataset", ("text.json", "text.npy", "pooled.npy"))] = None
    """Embeddings of the captions, for the held-out loss of models that read text."""
    champion: Annotated[str | None, Input("snapshot")] = None
    """What the candidate is compared with; if None, the champion of `model` when the run is planned."""

    features: FeaturesConfig = field(default_factory=EfficientNetFeatures)
    """What the images are compared by: their kernel distance decides."""
    count: int = 256
    """Images that each of the two draws: equally many for each validation image, of which it uses no more."""
    sampler: SamplerConfig = HeunConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    untrained: int = 96
    """Images of the candidate's network before training, from which it must be told apart."""
    losses: int = 512
    """Validation samples, at most, whose loss is taken."""
    draws: int = 4
    """Times and noises of each of these samples."""
    min_gain: float = 0.0
    """Share of the champion's distance that the lower end of the gain's 95 % interval must exceed. 0: the
    candidate is better beyond chance. -0.05: it may be as much as 5 % worse."""
    max_loss: float = 0.02
    """Share of the champion's held-out loss by which the candidate's may surely (lower end of the paired 95 %
    interval) be higher."""
    bootstrap: int = 1000
    """Resamples of every interval."""
    shown: int = 12
    """Pairs in the picture."""
    micro_batch: int = 16
    """Images in one forward call."""
    seed: int = 0

    def __post_init__(self) -> None:
        from pipelines.registry import NAME

        if not NAME.fullmatch(self.model):
            raise ValueError(f"{self.model!r} is no name of a registered model: leave out /, : and @.")
        if self.count < 8 or self.untrained < 8:
            raise ValueError("promote: count and untrained are at least 8.")
        if min(self.micro_batch, self.draws, self.shown) < 1:
            raise ValueError("promote: micro_batch, draws and shown are at least 1.")

    def external(self) -> dict[str, str]:
        return {"features": self.features.identity()}

    def implied(self, inputs: Inputs, store: Storage) -> Mapping[str, Source | None]:
        """The champion, where the recipe names none: the one that the candidate was, or is, to be held to."""
        if self.champion is not None:
            return {}
        from pipelines.registry import Registry
        from pipelines.runner.artifacts import Source

        registry = Registry.of(store)
        rival = registry.rival(self.model, inputs["candidate"].digest())
        if rival is None:
            return {}
        url, reference = registry.place(rival).url, rival.reference
        return {"champion": Source(kind="snapshot", url=url, reference=reference, version=rival.number)}

    def summary(self) -> str:
        return f"{self.count:,} images by the candidate and by the champion of {self.model}"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.scoring.promotion import Promotion

        return Promotion(self, session).run()
