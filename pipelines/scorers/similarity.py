"""Whether image and caption say the same: the cosine of their open_clip vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pipelines.embedders import OpenClipImages, OpenClipTexts
from pipelines.scorers.scorer import Scores, Subject, Unscored, rounded


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """`similarity`, from -1 to 1 (Radford et al., 2021); which value is high depends on the checkpoint."""

    kind: Literal["similarity"] = "similarity"
    path: str = field(metadata={"execution": True})
    """Folder of an open_clip checkpoint, as for the encoders of `embed`."""
    caption: Literal["first", "best", "mean"] = "first"
    """Which of a sample's captions counts; the mean goes by their weights."""
    name: str = "similarity"

    reads: ClassVar[tuple[str, ...]] = ("image",)
    reads_captions: ClassVar[bool] = True
    pixels: ClassVar[bool] = True
    guarded: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def external(self) -> dict[str, str]:
        return {
            "image": OpenClipImages(path=self.path).identity(),
            "text": OpenClipTexts(path=self.path).identity(),
        }

    def build(self, *, micro_batch: int = 16) -> SimilarityScorer:
        return SimilarityScorer(self, micro_batch)


class SimilarityScorer:
    def __init__(self, config: Similarity, micro_batch: int) -> None:
        from pipelines.scorers.clip import text_encoder

        self._config, self._micro_batch = config, micro_batch
        self._texts = text_encoder(config.path, micro_batch, OpenClipTexts(path=config.path).identity())

    def scores(self, subjects: Sequence[Subject]) -> list[Scores | Unscored]:
        from pipelines.scorers.clip import image_vectors, unit

        if not subjects:
            return []
        chosen = [s.captions[:1] if self._config.caption == "first" else s.captions for s in subjects]
        texts = sorted({caption["text"] for captions in chosen for caption in captions})
        vectors = dict(zip(texts, (unit(e.pooled) for e in self._texts.encode(texts)), strict=True))
        found: list[Scores | Unscored] = []
        for image, captions in zip(
            image_vectors(self._config.path, self._micro_batch, subjects), chosen, strict=True
        ):
            if not captions:
                found.append(Unscored("no caption"))
                continue
            # Pair by pair and in float64: a matrix product's sums depend on what else is in it.
            cosines = [float((image.astype("float64") * vectors[c["text"]]).sum()) for c in captions]
            weights = [c["weight"] for c in captions]
            value = max(cosines)
            if self._config.caption == "mean":
                value = sum(w * c for w, c in zip(weights, cosines, strict=True)) / sum(weights)
            found.append({self._config.name: rounded(value)})
        return found
