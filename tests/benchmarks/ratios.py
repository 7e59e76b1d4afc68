"""What the stages cost over the bare arithmetic in them: pairs measured in turn, A B A B, in one process."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

from tests.benchmarks.results import Result

PAIRS = int(os.environ.get("PAIRS", "3"))


def interleaved(a: Callable[[], float], b: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Rates of both, in turn: what else the machine does hits both alike."""
    a()
    b()
    pairs = [(a(), b()) for _ in range(PAIRS)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def ratio(name: str, unit: str, target: float, stage: list[float], bare: list[float]) -> Result:
    ratios = [x / y for x, y in zip(stage, bare, strict=True)]
    return Result(
        name=name,
        value=statistics.median(ratios),
        unit="ratio",
        target=target,
        better="higher",
        against=f"bare: {statistics.median(bare):.3g} {unit}, stage: {statistics.median(stage):.3g} {unit}",
        n=PAIRS,
        spread=(min(ratios), max(ratios)),
        note="pairs in turn; smallest and largest ratio",
    )
