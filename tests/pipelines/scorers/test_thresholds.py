from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipelines.scorers.thresholds import Limits, Threshold, histogram, summary


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_a_share_keeps_that_many(share: float, count: int) -> None:
    values = np.random.default_rng(0).permutation(count).astype(float)
    wanted = max(math.ceil(share * count - 1e-9), 1)
    top, bottom = Threshold(top=share).limits(values), Threshold(bottom=share).limits(values)
    assert sorted(v for v in values if top.keeps(v)) == sorted(values)[count - wanted :]
    assert sorted(v for v in values if bottom.keeps(v)) == sorted(values)[:wanted]


def test_ties_are_kept_together_and_all_that_is_given_holds() -> None:
    values = [1.0, 2.0, 2.0, 2.0, 3.0]
    assert [v for v in values if Threshold(top=0.4).limits(values).keeps(v)] == [2, 2, 2, 3]
    both = Threshold(min=2.5, top=0.4).limits(values)
    assert (both.low, both.high) == (2.5, math.inf)
    closed = Threshold(min=1, max=2).limits()
    assert [closed.keeps(v) for v in (0.999, 1, 2, 2.001)] == [False, True, True, False]
    assert Limits.from_json(closed.to_json()) == closed
    assert Limits.from_json(both.to_json()) == both


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "needs `min`"),
        ({"min": math.nan}, "finite"),
        ({"top": 1.5}, "shares"),
        ({"bottom": 0.0}, "shares"),
        ({"min": 2.0, "max": 1.0}, "nothing would be kept"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Threshold(**fields)


def test_histograms_count_everything() -> None:
    values = np.random.default_rng(0).normal(size=500).tolist()
    found = histogram(values)
    assert sum(found["counts"]) == 500
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert summary(values)["quantiles"]["0.5"] == pytest.approx(np.median(values), abs=1e-5)
