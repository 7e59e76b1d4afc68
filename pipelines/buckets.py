"""Sizes of about one area and several aspect ratios: images keep their shape, and a batch has one size.

As in NovelAI's bucketing (2022, "NovelAI Improvements on Stable Diffusion", "Aspect Ratio Bucketing") and the
list of SDXL (Podell et al., 2023, appendix I): both sides are multiples of a step, and an image belongs to
the size whose ratio is nearest to its own, by logarithm. All comparisons are of integers, so exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Size = tuple[int, int]
"""Width and height, px."""
_FINEST = 64
"""Steps in a side: with more, there are more sizes than any pile of images fills."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Which sizes images are brought to."""

    area: int = 64
    """Side of the square whose area each size has about, px; a multiple of `step`."""
    step: int = 16
    """Sides are multiples of it: of the autoencoder's factor times the network's patch, at least."""
    ratio: float = 2.0
    """Longer side over shorter side, at most."""
    smallest: int = 32
    """Training images that a size must have; those of a size with fewer go to the nearest other one."""

    def __post_init__(self) -> None:
        if self.step < 1 or not 8 <= self.area <= 4096 or self.area % self.step:
            raise ValueError(
                f"buckets.area is {self.area} px and step {self.step}: area must be 8 to 4096, "
                "and a multiple of step."
            )
        if self.area // self.step > _FINEST:
            raise ValueError(
                f"buckets.step is {self.step} px, which makes too many sizes: it must be at least "
                f"{-(-self.area // _FINEST)} for an area of {self.area}."
            )
        if not 1 <= self.ratio <= 16:
            raise ValueError(f"buckets.ratio is {self.ratio}; it must be 1 to 16.")
        if self.smallest < 1:
            raise ValueError(f"buckets.smallest is {self.smallest}; it must be at least 1.")

    def sizes(self) -> list[Size]:
        """All of them, from the narrowest to the widest.

        For each longer side the shorter one whose area comes nearest to `area`^2, the lower of two.
        """
        return list(_sizes(self.area, self.step, self.ratio))

    def nearest(self, width: int, height: int) -> Size:
        """The size of an image of that width and height."""
        return nearest((width, height), _sizes(self.area, self.step, self.ratio))

    def merged(self, counts: Mapping[Size, int]) -> dict[Size, Size]:
        """Where each size's images go: to itself, or, if it has too few, to the nearest one that has enough.

        `counts` is of training images; sizes that it does not name have none. The one with the fewest goes
        first, the narrower of two, and what it had counts where it went. One is left in any case; without
        any image all stay.
        """
        left = {size: counts.get(size, 0) for size in ordered({*self.sizes(), *counts})}
        gone: dict[Size, Size] = {}
        if any(left.values()):
            while len(left) > 1:
                size = min(left, key=lambda one: left[one])  # the first of equals: the narrower
                if left[size] >= self.smallest:
                    break
                count = left.pop(size)
                gone[size] = nearest(size, list(left))
                left[gone[size]] += count

        def end(size: Size) -> Size:
            while size in gone:
                size = gone[size]
            return size

        return {size: end(size) for size in ordered({*left, *gone})}

    def warning(self, counts: Mapping[Size, int]) -> str | None:
        """What `merged` does, in one line for the user; None where it moves no image."""
        moved = [(size, to) for size, to in self.merged(counts).items() if to != size and counts.get(size)]
        if not moved:
            return None
        said = ", ".join(f"{named(size)} ({counts[size]:,}) to {named(to)}" for size, to in moved)
        return f"Sizes with fewer than {self.smallest:,} training images were merged: {said}."


def listed(counts: Mapping[Size, int]) -> list[list[int]]:
    """Sizes as manifests have them, under `statistics.sizes`: width, height and training samples of each."""
    return [[*size, counts[size]] for size in ordered(counts)]


def known(statistics: Mapping[str, Any]) -> dict[Size, int]:
    """Sizes and training samples, by a manifest's or a snapshot's word; empty where all have one size."""
    return {(width, height): count for width, height, count in statistics.get("sizes") or ()}


def main(counts: Mapping[Size, int]) -> Size:
    """The size of most samples, the narrower of equals."""
    return max(ordered(counts), key=lambda size: counts[size])


def resolution(statistics: Mapping[str, Any]) -> int:
    """Side of the square that stands for all sizes, px: as the manifest says, else by their mean area, and
    made of the same steps as they are."""
    if statistics.get("resolution"):
        return int(statistics["resolution"])
    counts = known(statistics)
    area = sum(width * height * count for (width, height), count in counts.items()) / sum(counts.values())
    step = math.gcd(*(side for size in counts for side in size))
    return max(1, round(math.sqrt(area) / step)) * step


def named(size: Size) -> str:
    """`80x48`."""
    return f"{size[0]}x{size[1]}"


@functools.lru_cache(maxsize=8)
def _sizes(area: int, step: int, ratio: float) -> tuple[Size, ...]:
    wide = []
    for long in range(area, area**2 + 1, step):
        # The nearest multiple of the step to area^2 / long, half a step going down.
        short = -(-(2 * area**2 - long * step) // (2 * long * step)) * step
        if short < step or long > ratio * short:
            break
        wide.append((long, short))
    return tuple(ordered({*wide, *((short, long) for long, short in wide)}))


def ordered(sizes: Iterable[Size]) -> list[Size]:
    """From the narrowest to the widest, the smaller first of those with one ratio."""
    return sorted(set(sizes), key=lambda size: (Fraction(*size), size))


def nearest(image: Size, sizes: Sequence[Size]) -> Size:
    """Of sizes in `ordered` order, the one whose ratio is nearest by logarithm; the narrower of two.

    |log r - log a| < |log r - log b| for a < b just where r^2 < a b.
    """
    (width, height), best = image, sizes[0]
    for size in sizes[1:]:
        if width**2 * best[1] * size[1] > height**2 * best[0] * size[0]:
            best = size
    return best
