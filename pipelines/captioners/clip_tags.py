"""Captions from the image itself: the likeliest of the user's own tags, by an open_clip checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.captioners.caption import Answer, Subject
from pipelines.captioners.sight import seen
from pipelines.captioners.tags import check_tagged, likeliest
from pipelines.embedders.clip import OpenClipImages, OpenClipTexts
from pipelines.embedders.embedding import settings_digest
from pipelines.embedders.folder import local_folder
from pipelines.places import at_hand

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_SCALE = 100.0
"""Of a checkpoint that does not keep its own: what CLIP's training ends at."""


@dataclass(frozen=True, kw_only=True)
class ClipTags:
    """Zero-shot (Radford et al., 2021, section 3.1): each tag is said in every one of `templates`, their
    vectors are averaged, and an image's tags are the nearest."""

    kind: Literal["open_clip"] = "open_clip"
    path: str = field(metadata={"execution": True})
    """Folder with open_clip_config.json and one safetensors file; its contents decide, not its place."""
    tags: tuple[str, ...] = ()
    """What can be in the images: `[fox, red car, city at night]`."""
    file: str | None = field(default=None, metadata={"execution": True})
    """A text file with a tag a line, instead of `tags`; lines that begin with # say nothing."""
    templates: tuple[str, ...] = ("a photo of {tag}.", "a drawing of {tag}.", "a picture that shows {tag}.")
    """How a tag is said to the model."""
    text: str = "{tag}"
    """Caption of one tag."""
    top: int = 3
    """Captions a sample, at most."""
    threshold: float = 0.1
    """Tags less probable than this, among all tags, are left out; the first is kept always."""
    weight: float = 1.0
    """Of all tags together, shared among them by probability; relative to the other captioners'."""
    micro_batch: int = 16
    """Images, or texts, a forward call, which the last is padded to."""
    only_missing: bool = False
    """Asked only for images that the captioners before it gave nothing."""

    def __post_init__(self) -> None:
        for text in (self.text, *self.templates):
            check_tagged(text)
        if not self.templates:
            raise ValueError("open_clip tags need at least one of `templates`, such as 'a photo of {tag}.'.")
        if bool(self.tags) == (self.file is not None):
            raise ValueError("open_clip tags: give `tags`, or a `file` with a tag a line.")
        if self.tags and len(set(self.tags)) < max(2, len(self.tags)):
            raise ValueError("open_clip tags: there must be at least two `tags`, and none twice.")
        if self.top < 1 or self.micro_batch < 1 or self.weight <= 0:
            raise ValueError("open_clip tags: top and micro_batch are at least 1, weight above 0.")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"open_clip tags: threshold is {self.threshold}; it is a probability below 1.")

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def summary(self) -> str:
        of = f"{len(self.tags):,} tags" if self.tags else "the tags of a file"
        return f"top {self.top} of {of} by open_clip"

    def external(self) -> dict[str, str]:
        """By contents: two of these in one stage do not stand in each other's way."""
        digest = OpenClipImages(path=self.path).identity()
        found = {f"open_clip {digest[:12]}": digest}
        if self.file is not None:
            listed = settings_digest(*self.names())
            found[f"tags {listed[:12]}"] = listed
        return found

    def names(self) -> tuple[str, ...]:
        """All tags, in order; `ValueError` if the file is not a list of them."""
        return self.tags if self.file is None else _lines(self.file)

    def build(self) -> ClipTagger:
        return ClipTagger(self)


class ClipTagger:
    def __init__(self, config: ClipTags) -> None:
        self._config, self._names = config, config.names()
        self._tags = _tag_vectors(config, self._names)
        self._images = OpenClipImages(path=config.path).build(micro_batch=config.micro_batch)
        self._scale = _logit_scale(config.path)

    def answers(self, subjects: Sequence[Subject]) -> list[Answer]:
        # A run at a time: the images of more than one call need not be in memory.
        size = self._config.micro_batch
        runs = (subjects[start : start + size] for start in range(0, len(subjects), size))
        return [answer for run in runs for answer in seen(run, lambda image: image, self._tagged)]

    def _tagged(self, images: Sequence[Image]) -> list[Answer]:
        import numpy as np
        import torch

        if not images:
            return []
        # One by one: a product of matrices rounds by their shapes, and company is to change nothing.
        vectors = self._images.encode(images).astype(np.float64)
        nearness = np.stack([self._tags @ vector for vector in vectors])
        probabilities = torch.from_numpy(self._scale * nearness).softmax(-1)
        return likeliest(probabilities, self._names, self._config, source="open_clip")


def _tag_vectors(config: ClipTags, names: Sequence[str]) -> np.ndarray:
    """[tags, width] in float64, each the mean over the templates, of length 1."""
    import numpy as np

    # Loaded for this alone: beside the images' half it would lie in memory twice.
    texts = OpenClipTexts(path=config.path).build(micro_batch=config.micro_batch)
    total: Any = 0.0
    for template in config.templates:
        said = texts.encode([template.replace("{tag}", name) for name in names])
        total = total + np.stack([one.pooled for one in said]).astype(np.float64)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def _logit_scale(path: str) -> float:
    """What the checkpoint multiplies cosines with."""
    from math import exp

    from safetensors import safe_open

    for file in sorted(local_folder(path).glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            if "logit_scale" in tensors.keys():  # noqa: SIM118 (no mapping)
                return exp(min(float(tensors.get_tensor("logit_scale")), 4.6052))
    return _SCALE


def _lines(file: str) -> tuple[str, ...]:
    path = at_hand(file)
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"There is no file of tags at {file}.") from error
    return _read(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _read(path: str, modified: int, size: int) -> tuple[str, ...]:
    with open(path, encoding="utf-8") as lines:
        tags = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if len(set(tags)) < max(2, len(tags)):
        raise ValueError(f"{path} must list at least two tags, one a line, and none twice.")
    return tags
