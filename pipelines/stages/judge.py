"""Whether generated images help: classifiers trained with and without them, judged on real test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from diffusion.config import OptimizationConfig
from pipelines.stage import Input, Kind, Session, Stage
from pipelines.stages.train_autoencoder import check_training

SEEDS = 500
"""Seeds of one kind, at most: those that choose are counted from here."""


@dataclass(frozen=True, kw_only=True)
class Judge(Stage):
    """Trains small classifiers on real images (plain; with class-balanced loss; with balanced softmax), on
    real and generated ones, and on generated ones alone: several seeds, equal steps, batch and variations.

    The verdict, by a rule that is fixed beforehand: **benefit** if the 95 % interval of the gain in macro
    accuracy on the real test split lies above 0 against every arm without generated images, and so against
    the best of them; **harm** if it lies below 0 against real images alone; else **no benefit**. Intervals
    are over seeds and test images, paired by both. They hold for these generated images: another model, or
    another training of it, is another question.

    Nothing is chosen on the test split. Where `lrs` or `weights` offer a choice, each arm takes what is best
    on the validation split, by classifiers that are trained for that alone.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "report"
    accelerated: ClassVar[bool] = True
    length: ClassVar[tuple[str, ...]] = ("seeds", "bootstrap")

    augmented: Annotated[str, Input("dataset", ("image", "cls"))]
    """What `augment` made: real images, and generated ones with their weights."""
    generated: Annotated[str | None, Input("dataset", ("image", "cls"))] = None
    """All that was generated, for the arm without real images; those in `augmented` if None."""
    seeds: int = 5
    """Classifiers of each arm. A larger number adds to a smaller."""
    images_seen: int = 19_200
    """Images that each classifier sees, whatever it is trained on."""
    batch: int = 64
    """Images a step."""
    optimization: OptimizationConfig = OptimizationConfig(
        lr=3e-3, weight_decay=0.05, warmup=1_600, cooldown=9_600, ema=0.05
    )
    lrs: tuple[float, ...] = ()
    """Learning rates of which each arm takes the best on the validation split; `optimization.lr` if empty."""
    weights: tuple[float, ...] = ()
    """Factors of the generated images' weights, of which the best on the validation split is taken; 1 if
    empty."""
    choosing_seeds: int = 2
    """Classifiers for each choice on offer."""
    width: int = 16
    """Channels of the classifier's first level, a multiple of 8."""
    size: int = 32
    """Side in px that images are brought to, a multiple of 8."""
    flips: bool = True
    """Mirrors half of the images left to right, in every arm."""
    shift: int = 1
    """Moves images by up to so many px each way, in every arm."""
    beta: float = 0.999
    """Of the class-balanced loss, weights (1 - beta) / (1 - beta^n): 0 for none, towards 1 for 1 / n."""
    bootstrap: int = 4000
    """Resamples of every interval."""
    micro_batch: int = 256
    """Images in one forward call when judging."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_training(self.images_seen, self.batch, self.optimization)
        if not 2 <= self.seeds <= SEEDS or not 1 <= self.choosing_seeds <= SEEDS:
            raise ValueError(
                f"seeds is {self.seeds} and choosing_seeds {self.choosing_seeds}; they must be 2 to {SEEDS} "
                f"(an interval needs 2) and 1 to {SEEDS}."
            )
        for name in ("width", "size"):
            if getattr(self, name) < 8 or getattr(self, name) % 8:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a multiple of 8.")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is {self.beta}; it must be 0 or more and below 1.")
        if not 0 <= self.shift < self.size:
            raise ValueError(f"shift is {self.shift} px; it must be 0 or more and below size.")
        if min(self.lrs, default=1) <= 0 or min(self.weights, default=1) <= 0:
            raise ValueError("lrs and weights must be above 0.")
        if self.bootstrap < 100 or self.micro_batch < 1:
            raise ValueError("bootstrap is at least 100, micro_batch at least 1.")

    def summary(self) -> str:
        return f"{self.seeds} classifiers an arm, {self.images_seen:,} images each"

    def run(self, session: Session) -> dict[str, Any]:
        """Writes verdict.json and a picture of the gain of each class.

        Raises:
            ValueError: no classes, no test split, nothing generated, a class without a real training image.
        """
        from pipelines.verdict.trials import Trials

        return Trials(self, session).run()
