"""Encoded images to batches of pixels, at one size or several, for a network that must not wait."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pipelines.arrays import pixels
from pipelines.buckets import Size
from pipelines.encoding.ahead import spread

if TYPE_CHECKING:
    import numpy as np
    import torch

REMEDY = "give ingest a size and a resize, or `buckets`."


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Which sizes the images may have, and to which ones each is shrunk."""

    factor: int
    """Of the autoencoder: sides are multiples of it."""
    several: bool
    """Whether images may differ in size."""
    also: tuple[int, ...] = ()
    """Sides, px, of the squares whose areas the shrunk ones have."""
    resolution: int | None = None
    """Side of the square that stands for all sizes, px, if there are several."""

    def shrunk(self, size: Size, side: int) -> Size:
        """The size of an image of `size` at a smaller resolution: multiples of the factor near its shape.

        `ValueError` where it is not smaller.
        """
        width, height = size
        whole = self.resolution or (width if width == height else round(math.sqrt(width * height)))
        if side >= whole:
            raise ValueError(f"`also` has {side} px, and the images have {whole} px: name smaller ones.")
        across, down = (
            max(1, round(Fraction(length * side, whole * self.factor))) * self.factor for length in size
        )
        return across, down

    def check(self, key: str, size: Size) -> None:
        """`ValueError` for an image that the autoencoder does not take."""
        width, height = size
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"{key} is {width} x {height} px, not a multiple of the autoencoder's factor "
                f"{self.factor}; give ingest such a size."
            )


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size, the last one repeated until there are enough."""

    keys: list[str]
    images: dict[int | None, torch.Tensor]
    """uint8 [b, h, w, 3]: as they are (None), and at each resolution that they were shrunk to."""


def batches(
    records: Iterable[Any], size: int, sizing: Sizing, *, threads: int = 1, pinned: bool = False
) -> Iterator[Batch]:
    """Batches of exactly `size` images in the order of the records, each decoded once.

    Args:
        threads: that decode.
        pinned: whether the pixels lie where a GPU can fetch them by itself.

    Raises:
        ValueError: sizes that the autoencoder does not take, or that differ although they must not.
    """
    waiting: dict[Size, tuple[list[str], list[dict[int | None, np.ndarray]]]] = {}
    found = spread(lambda record: _pictures(record, sizing), records, threads=threads, depth=2 * size)
    for key, images in found:
        height, width = images[None].shape[:2]
        keys, gathered = waiting.setdefault((width, height), ([], []))
        if len(waiting) > 1 and not sizing.several:
            raise ValueError(f"{key} differs in size from the others; {REMEDY}")
        keys.append(key)
        gathered.append(images)
        if len(keys) == size:
            yield _stacked(*waiting.pop((width, height)), size, pinned=pinned)
            if not sizing.several:
                waiting[width, height] = ([], [])
    for keys, gathered in waiting.values():
        if keys:
            yield _stacked(keys, gathered, size, pinned=pinned)


def _pictures(record: Any, sizing: Sizing) -> tuple[str, dict[int | None, np.ndarray]]:
    image = pixels(record.members["image"])
    height, width = image.shape[:2]
    sizing.check(record.key, (width, height))
    found: dict[int | None, np.ndarray] = {None: image}
    for side in sizing.also:
        found[side] = shrink(image, sizing.shrunk((width, height), side))
    return record.key, found


def shrink(image: np.ndarray, size: Size) -> np.ndarray:
    """uint8 [h, w, 3] at a smaller width and height, the middle kept where the shape differs.

    By Lanczos, of the values as they are stored (not of linear light): as ingest does it, and as images are
    usually made small for training. In integers, so equal on every machine.
    """
    import numpy as np
    from PIL import Image

    height, width = image.shape[:2]
    across, down = size
    inner = min(float(width), height * across / down), min(float(height), width * down / across)
    left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
    box = (left, top, min(left + inner[0], width), min(top + inner[1], height))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, box=box))


def _stacked(
    keys: list[str], images: Sequence[dict[int | None, np.ndarray]], size: int, *, pinned: bool
) -> Batch:
    import numpy as np
    import torch

    found: dict[int | None, torch.Tensor] = {}
    for side, first in images[0].items():
        pile = torch.empty((size, *first.shape), dtype=torch.uint8, pin_memory=pinned)
        np.stack([*(of[side] for of in images), *[images[-1][side]] * (size - len(images))], out=pile.numpy())
        found[side] = pile
    return Batch(keys, found)
