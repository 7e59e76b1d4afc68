"""Held-out images and captions that find one another: what a CLIP is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pipelines.stage import KEEP, Input, Kind, Session, Stage


@dataclass(frozen=True, kw_only=True)
class EvaluateClip(Stage):
    """Recall at 1 and 10 both ways among `count` pairs, with 95 % intervals, and the area under the ROC
    curve. Writes metrics.json and a picture.

    The snapshot's own vectors are compared, as `embed` makes them: its plain preprocessing, no second view.
    """

    version: ClassVar[int] = 1
    output: ClassVar[Kind] = "report"
    accelerated: ClassVar[bool] = True

    images: Annotated[str, Input("dataset", ("image",))]
    captions: Annotated[str, Input("dataset", ("captions.json",))]
    """The first caption of each image is what it is found by."""
    model: Annotated[str, Input("snapshot")]
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = None
    """A filter or deduplicate stage: only images that it keeps are compared."""
    split: Literal["validation", "test"] = "test"
    count: int = 200
    """Pairs, at most: recall falls as they become more."""
    seed: int = 0
    """Which of the split's pairs, where there are more."""
    micro_batch: int = 16
    """Images, or captions, a forward call, which the last is padded to."""
    shown: int = 8
    """Images in the picture."""

    def __post_init__(self) -> None:
        for name, least in (("count", 2), ("micro_batch", 1), ("shown", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")

    def summary(self) -> str:
        return f"{self.model} on up to {self.count:,} {self.split} pairs"

    def run(self, session: Session) -> dict[str, Any]:
        from pipelines.scoring.pairs import evaluate

        return evaluate(self, session)
