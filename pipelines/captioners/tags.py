"""Captions from the image itself: the likeliest of ImageNet's thousand classes."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines import weights
from pipelines.captioners.caption import Caption, Subject
from pipelines.embedders.embedding import batches, device_at_hand

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

    def __post_init__(self) -> None:
        if "{tag}" not in self.text or self.text.replace("{tag}", "").strip("{}") != self.text.replace(
            "{tag}", ""
        ):
            raise ValueError(f"The tags' text {self.text!r} needs {{tag}} and no other braces.")
        if not 1 <= self.top <= 1000 or self.micro_batch < 1 or self.weight <= 0:
            raise ValueError("tags: top is 1 to 1000, micro_batch at least 1, weight above 0.")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"tags: threshold is {self.threshold}; it is a probability from 0 to below 1.")

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image",)

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

    def captions(self, subjects: Sequence[Subject]) -> list[list[Caption]]:
        import torch
        from PIL import Image

        from pipelines.embedders.efficientnet import network_input

        found = []
        for run, count in batches(subjects, self._config.micro_batch):
            images = torch.cat([network_input(Image.open(io.BytesIO(subject.image))) for subject in run])
            with torch.inference_mode():
                probabilities = self._network.logits(images.to(self._device)).softmax(-1)
            # Stable, so that equal probabilities keep the classes' order.
            values, classes = probabilities.sort(dim=-1, descending=True, stable=True)
            tops = zip(values[:count, : self._config.top].tolist(), classes[:count].tolist(), strict=True)
            found += [self._captions(top, numbers) for top, numbers in tops]
        return found

    def lacks(self, subject: Subject) -> str | None:
        return None

    def _captions(self, probabilities: list[float], classes: list[int]) -> list[Caption]:
        kept = [p for n, p in enumerate(probabilities) if n == 0 or p >= self._config.threshold]
        return [
            Caption(
                text=self._config.text.replace("{tag}", class_names()[number]),
                weight=round(self._config.weight * probability / sum(kept), 6),
                source="tags",
                probability=round(probability, 6),
            )
            for probability, number in zip(kept, classes, strict=False)
        ]


@functools.cache
def class_names() -> tuple[str, ...]:
    """ImageNet-1k's classes by number."""
    lines = _NAMES.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))
