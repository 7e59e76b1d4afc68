"""Captions from the image itself: the likeliest of ImageNet's thousand classes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pipelines import weights
from pipelines.captioners.caption import Answer, Caption, Subject
from pipelines.captioners.sight import seen
from pipelines.embedders.embedding import batches, device_at_hand
from pipelines.stage import added

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = Path(__file__).parent.parent / "data" / "imagenet_classes.txt"


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Zero-shot: EfficientNet-Lite0's class names, for images that come without words."""

    kind: Literal["tags"] = "tags"
    text: str = "{tag}"
    """Caption of one tag."""
    top: int = 3
    """Captions a sample, at most."""
    threshold: float = 0.1
    """Tags less probable than this are left out; the first is kept always."""
    weight: float = 1.0
    """Of all tags together, shared among them by probability; relative to the other captioners'."""
    micro_batch: int = 16
    """Images a forward call, which the last is padded to."""
    only_missing: bool = added(False)
    """Asked only for images that the captioners before it gave nothing."""

    def __post_init__(self) -> None:
        check_tagged(self.text)
        if not 1 <= self.top <= 1000 or self.micro_batch < 1 or self.weight <= 0:
            raise ValueError("tags: top is 1 to 1000, micro_batch at least 1, weight above 0.")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"tags: threshold is {self.threshold}; it is a probability from 0 to below 1.")

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def summary(self) -> str:
        return f"top {self.top} tags"

    def external(self) -> dict[str, str]:
        return {"efficientnet-lite0": weights.digest("efficientnet-lite0")}

    def build(self) -> TagsCaptioner:
        return TagsCaptioner(self)


class TagsCaptioner:
    def __init__(self, config: Tags) -> None:
        from diffusion.metrics.features import EfficientNetLite0

        self._config = config
        self._device = device_at_hand()
        self._network = EfficientNetLite0(weights.load("efficientnet-lite0")).to(self._device)

    def answers(self, subjects: Sequence[Subject]) -> list[Answer]:
        from pipelines.embedders.efficientnet import network_input

        return seen(subjects, network_input, self._named)

    def _named(self, images: Sequence[Tensor]) -> list[Answer]:
        """Of images as the network wants them, each [1, 3, 224, 224]."""
        import torch

        found: list[Answer] = []
        for run, count in batches(images, self._config.micro_batch):
            with torch.inference_mode():
                probabilities = self._network.logits(torch.cat(run).to(self._device)).softmax(-1)
            found += likeliest(probabilities[:count], class_names(), self._config, source="tags")
        return found


class Choosing(Protocol):
    """How many of the tags are taken, and how they are said."""

    @property
    def text(self) -> str: ...
    @property
    def top(self) -> int: ...
    @property
    def threshold(self) -> float: ...
    @property
    def weight(self) -> float: ...


def likeliest(
    probabilities: Tensor, names: Sequence[str], choosing: Choosing, *, source: str
) -> list[Answer]:
    """The captions of each row of `probabilities` [images, names]."""
    # Stable, so that equal probabilities keep the names' order.
    values, classes = probabilities.sort(dim=-1, descending=True, stable=True)
    rows: list[list[float]] = values[:, : choosing.top].tolist()
    numbers: list[list[int]] = classes[:, : choosing.top].tolist()
    return [
        Answer(captions=tuple(_captions(row, [names[number] for number in of], choosing, source)))
        for row, of in zip(rows, numbers, strict=True)
    ]


def check_tagged(text: str) -> None:
    """`ValueError` unless a tag has its place in the text."""
    if "{tag}" not in text or text.replace("{tag}", "").strip("{}") != text.replace("{tag}", ""):
        raise ValueError(f"The tags' text {text!r} needs {{tag}} and no other braces.")


def _captions(
    probabilities: Sequence[float], tags: Sequence[str], choosing: Choosing, source: str
) -> Iterator[Caption]:
    kept = [p for n, p in enumerate(probabilities) if n == 0 or p >= choosing.threshold]
    for probability, tag in zip(kept, tags, strict=False):
        yield Caption(
            text=choosing.text.replace("{tag}", tag),
            weight=round(choosing.weight * probability / sum(kept), 6),
            source=source,
            probability=round(probability, 6),
        )


@functools.cache
def class_names() -> tuple[str, ...]:
    """ImageNet-1k's classes by number."""
    lines = _NAMES.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))
