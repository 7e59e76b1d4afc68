"""Which scores are kept: limits as they are written, and the numbers that they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

BINS = 32
"""Of a histogram."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a score must be for a sample to be kept; what is given must all hold."""

    min: float | None = None
    max: float | None = None
    """Both are themselves kept."""
    top: float | None = None
    """Share of the training images, those with the highest scores; the score of the last of them is then the
    limit for all."""
    bottom: float | None = None
    """The same for the lowest."""

    def __post_init__(self) -> None:
        given = (self.min, self.max, self.top, self.bottom)
        if all(value is None for value in given):
            raise ValueError("a threshold needs `min`, `max`, `top` or `bottom`, such as {min: 40}.")
        if any(value is not None and not math.isfinite(value) for value in given):
            raise ValueError("a threshold must be a finite number.")
        for share in (self.top, self.bottom):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"`top` and `bottom` are shares, above 0 and at most 1; this is {share}.")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: nothing would be kept.")

    @property
    def relative(self) -> bool:
        """Whether it depends on the other samples' scores."""
        return self.top is not None or self.bottom is not None

    def limits(self, values: Sequence[float] | np.ndarray = ()) -> Limits:
        """As numbers; `values` are the scores that shares are taken of."""
        low = -math.inf if self.min is None else self.min
        high = math.inf if self.max is None else self.max
        if self.relative:
            import numpy as np

            ordered = np.sort(np.asarray(values, dtype=np.float64))
            if not len(ordered):
                raise ValueError("there is no score to take a share of.")
            if self.top is not None:
                low = max(low, float(ordered[len(ordered) - _count(self.top, len(ordered))]))
            if self.bottom is not None:
                high = min(high, float(ordered[_count(self.bottom, len(ordered)) - 1]))
        return Limits(low, high)


@dataclass(frozen=True)
class Limits:
    low: float
    high: float

    def keeps(self, value: float) -> bool:
        return self.low <= value <= self.high

    def to_json(self) -> dict[str, float | None]:
        return {
            "min": self.low if math.isfinite(self.low) else None,
            "max": self.high if math.isfinite(self.high) else None,
        }

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Limits:
        low, high = said["min"], said["max"]
        return Limits(-math.inf if low is None else low, math.inf if high is None else high)


def histogram(values: Sequence[float]) -> dict[str, Any]:
    """Counts in `BINS` equal parts between the lowest and the highest value, and where the parts begin and
    end: {"edges" (one more than counts), "counts"}."""
    import numpy as np

    counts, edges = np.histogram(np.asarray(values, dtype=np.float64), bins=BINS)
    return {"counts": counts.tolist(), "edges": [float(f"{edge:.6g}") for edge in edges]}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """How many there are, and the quantiles from which thresholds are chosen."""
    import numpy as np

    shares = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
    found = np.quantile(np.asarray(values, dtype=np.float64), shares)
    return {
        "count": len(values),
        "quantiles": {f"{share:g}": float(f"{q:.6g}") for share, q in zip(shares, found, strict=True)},
    }


def _count(share: float, of: int) -> int:
    """At least one; a share that is meant exactly is not raised by its last bit."""
    return min(max(math.ceil(share * of - 1e-9), 1), of)
