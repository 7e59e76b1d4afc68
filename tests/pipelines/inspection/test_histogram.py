from __future__ import annotations

import random

import pytest

from pipelines.inspection.histogram import MOST, Histogram


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_bars_hold_every_value_once(scale: str) -> None:
    chance = random.Random(0)
    for spread in (3, 40, 900, 70_000):
        histogram = Histogram("x", "px", scale)
        values = [chance.randint(1, spread) for _ in range(500)]
        for value in values:
            histogram.add(value)
        bars = histogram.bars()
        assert sum(count for _, count in bars) == 500
        assert len(bars) <= 11
        for label, count in bars:
            low, _, high = label.replace(",", "").partition(" to ")
            assert count == sum(int(low) <= value <= int(high or low) for value in values)
        assert histogram.quantile(0.5) == sorted(values)[249]


def test_aspects_go_to_the_nearest_name() -> None:
    histogram = Histogram("x", "", "aspect")
    for width, height in ((100, 100), (101, 100), (1920, 1080), (1080, 1920), (4000, 100)):
        histogram.add(1000 * width / height)
    assert histogram.bars() == [("9:16", 1), ("1:1", 2), ("16:9", 1), ("3:1", 1)]


def test_memory_does_not_grow_with_the_values() -> None:
    histogram = Histogram("x", "px")
    for value in range(100_000):
        histogram.add(value * 7)
    assert len(histogram.counts) <= MOST
    assert histogram.total == 100_000
    assert histogram.quantile(0.5) == pytest.approx(350_000, rel=0.01)
