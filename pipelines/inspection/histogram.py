"""Counts by value, gathered as values come, in memory that does not grow with their number."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

MOST = 20_000
"""Different values that are told apart; above, they are rounded to three digits that matter."""

ASPECTS = (
    ("1:3", 1 / 3),
    ("1:2", 1 / 2),
    ("9:16", 9 / 16),
    ("2:3", 2 / 3),
    ("3:4", 3 / 4),
    ("1:1", 1.0),
    ("4:3", 4 / 3),
    ("3:2", 3 / 2),
    ("16:9", 16 / 9),
    ("2:1", 2.0),
    ("3:1", 3.0),
)


@dataclass
class Histogram:
    """Of whole numbers."""

    title: str
    unit: str
    scale: str = "linear"
    """linear, log, or aspect (of a thousandth each)."""
    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        self.counts[round(value)] += 1
        if len(self.counts) > MOST:
            rounded: Counter[int] = Counter()
            for value, count in self.counts.items():
                digits = max(0, len(str(abs(value))) - 3)
                rounded[round(value, -digits)] += count
            self.counts = rounded

    @property
    def total(self) -> int:
        return self.counts.total()

    def quantile(self, share: float) -> int:
        """The value that `share` of all do not exceed."""
        left = max(1, math.ceil(share * self.total))
        for value in sorted(self.counts):
            left -= self.counts[value]
            if left <= 0:
                return value
        return 0

    def bars(self, most: int = 10) -> list[tuple[str, int]]:
        """At most `most` ranges with their counts, of equal or, on a log scale, of equally growing width."""
        if not self.counts:
            return []
        if self.scale == "aspect":
            near: Counter[str] = Counter()
            for value, count in self.counts.items():
                name = min(ASPECTS, key=lambda a: abs(math.log(a[1] * 1000 / max(value, 1))))[0]
                near[name] += count
            return [(name, near[name]) for name, _ in ASPECTS if near[name]]
        values = sorted(self.counts)
        if len(values) <= most:
            return [(f"{value:,}", self.counts[value]) for value in values]
        edges = self._edges(values[0], values[-1], most)
        found = []
        for low, high in itertools.pairwise(edges):
            count = sum(c for v, c in self.counts.items() if low <= v < high)
            found.append((f"{low:,} to {high - 1:,}" if high - low > 1 else f"{low:,}", count))
        return found

    def _edges(self, low: int, high: int, most: int) -> list[int]:
        if self.scale == "log" and low > 0:
            powers = [2 ** (n / 2) for n in range(80)]
            for step in (1, 2, 4, 8):
                edges = [p for p in powers[::step] if p * powers[step] > low]
                edges = edges[: next((n for n, e in enumerate(edges) if e > high), len(edges)) + 1]
                if len(edges) <= most + 1:
                    return [round(e) for e in edges]
        for power in range(12):
            for multiple in (1, 2, 5):
                width = multiple * 10**power
                first = low // width * width
                if (high - first) // width + 1 <= most:
                    return list(range(first, high + width + 1, width))[: (high - first) // width + 2]
        return [low, high + 1]

    def as_json(self) -> dict[str, object]:
        return {
            "unit": self.unit,
            "count": self.total,
            "min": min(self.counts, default=None),
            "median": self.quantile(0.5) if self.counts else None,
            "max": max(self.counts, default=None),
            "bars": [{"range": label, "count": count} for label, count in self.bars()],
        }
