from __future__ import annotations

import math

import pytest

from diffusion.metrics.estimate import Estimate
from pipelines.scoring.gate import Figures, Loss, Rule, decide

RULE = Rule(min_gain=0.0, max_loss=0.02)


def around(value: float, half: float = 5.0) -> Estimate:
    return Estimate(value=float(value), stderr=half / 2, low=float(value - half), high=float(value + half))


def figures(**changes: object) -> Figures:
    fields: dict = {
        "name": "KID-Toy",
        "candidate": around(80),
        "untrained": around(500),
        "champion": around(100),
        "gain": around(20),
        "loss": Loss(candidate=0.9, champion=1.0, rise=around(-0.1, 0.01)),
    }
    return Figures(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "promoted", "why"),
    [
        ({}, True, "a gain of 20.0 (15.0 to 25.0)"),
        ({"champion": None, "gain": None, "loss": None}, True, "the first"),
        ({"finite": False}, False, "not finite"),
        ({"candidate": around(math.nan)}, False, "not finite"),
        ({"candidate": around(495)}, False, "no better than its network untrained"),
        ({"candidate": around(495), "champion": None, "gain": None}, False, "no better than its network"),
        ({"gain": around(4)}, False, "its lower end must exceed 0.0"),
        ({"gain": around(-20)}, False, "its lower end must exceed 0.0"),
        ({"gain": around(0, 0)}, False, "its lower end must exceed 0.0"),
        ({"loss": None}, True, "a gain"),
        ({"loss": Loss(candidate=1.1, champion=1.0, rise=around(0.1, 0.01))}, False, "held-out loss rose"),
        ({"loss": Loss(candidate=1.02, champion=1.0, rise=around(0.02, 0.01))}, True, "a gain"),
    ],
)
def test_the_rule_decides(changes: dict, promoted: bool, why: str) -> None:
    decision = decide(figures(**changes), RULE)
    assert decision.promoted is promoted
    assert why in decision.why
    assert "\n" not in decision.why


def test_the_least_gain_is_a_share_of_the_champions_distance() -> None:
    worse = figures(champion=around(100), gain=around(-2, 2))
    assert not decide(worse, RULE).promoted
    assert decide(worse, Rule(min_gain=-0.05, max_loss=0.02)).promoted
    assert not decide(worse, Rule(min_gain=-0.03, max_loss=0.02)).promoted
    assert not decide(figures(gain=around(20, 5)), Rule(min_gain=0.2, max_loss=0.02)).promoted
    # a champion as good as real images leaves no share to ask for
    perfect = figures(champion=around(-1), gain=around(1, 0.5))
    assert decide(perfect, Rule(min_gain=0.5, max_loss=0.02)).promoted
