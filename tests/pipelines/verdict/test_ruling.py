"""Intervals that cover what is true as often as they say, and the rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.verdict.arms import ARMS, WITHOUT
from pipelines.verdict.ruling import interval, macro, ruling, verdict


def test_a_macro_accuracy_weighs_classes_alike() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    scores = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert macro(scores[0], labels).mean() == 0.5
    assert interval(scores, labels, bootstrap=200, seed=0)["value"] == 0.75
    assert interval(scores, labels, of=[1], bootstrap=200, seed=0)["value"] == 0.5


def test_what_never_varies_has_no_width() -> None:
    sure = interval(np.ones((3, 20), np.int64), np.arange(20) % 4, bootstrap=200, seed=0)
    assert sure == {"value": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_intervals_cover_the_truth(seeds: int) -> None:
    """Seeds and images of which each alone would make the interval too short."""
    draws = np.random.default_rng(seeds)
    labels = np.repeat(np.arange(3), [40, 80, 120])
    runs, covered = 250, 0
    for n in range(runs):
        image = draws.uniform(-0.3, 0.3, len(labels))
        seed = draws.normal(0, 0.03, (seeds, 1))
        gained = draws.random((seeds, len(labels))) < 0.45 + image + seed
        lost = draws.random((seeds, len(labels))) < 0.35 - image
        found = interval(gained.astype(int) - lost, labels, least=-1, bootstrap=400, seed=n)
        covered += found["low"] <= 0.1 <= found["high"]
    # 2 standard deviations below 95 %; above, because two sources whose sizes are guessed are overstated
    assert 0.922 <= covered / runs <= 1


def test_a_bootstrap_of_seeds_would_be_too_short() -> None:
    """Three seeds 0.1 apart: Student's t with 2 degrees of freedom reaches 4.30 standard errors."""
    labels = np.zeros(1000, np.int64)
    scores = np.stack([np.arange(1000) < 1000 * (0.5 + d) for d in (-0.1, 0, 0.1)]).astype(int)
    found = interval(scores, labels, bootstrap=40_000, seed=0)
    reach = 4.303 * 0.1 / 3**0.5
    assert found["high"] - 0.5 == pytest.approx(reach, rel=0.05)
    assert 0.5 - found["low"] == pytest.approx(reach, rel=0.05)


def gains(**low_high: tuple[float, float]) -> dict[str, Any]:
    return {name: {"low": low, "high": high} for name, (low, high) in low_high.items()}


@pytest.mark.parametrize(
    ("real", "class_balanced", "balanced_softmax", "said"),
    [
        ((0.01, 0.05), (0.01, 0.03), (0.001, 0.02), "benefit"),
        ((0.01, 0.05), (-0.001, 0.03), (0.001, 0.02), "no benefit"),
        ((0.01, 0.05), (0.01, 0.03), (-0.05, -0.02), "no benefit"),
        ((-0.02, 0.05), (0.01, 0.03), (0.01, 0.02), "no benefit"),
        ((-0.05, -0.01), (-0.05, -0.01), (-0.05, 0.01), "harm"),
        ((-0.05, 0.0), (-0.05, -0.01), (-0.05, -0.01), "no benefit"),
    ],
)
def test_the_rule(real: Any, class_balanced: Any, balanced_softmax: Any, said: str) -> None:
    found = gains(real=real, class_balanced=class_balanced, balanced_softmax=balanced_softmax)
    assert verdict(found) == said


def test_a_ruling_is_paired_and_tells_all_that_it_rests_on() -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 100)
    hard = draws.random(len(labels)) < 0.4

    def answers(also_right: int) -> np.ndarray:
        """Wrong on the hard images, except for some of them: the same images for every seed."""
        wrong = hard.copy()
        wrong[np.flatnonzero(hard)[: 2 * also_right : 2]] = False
        return np.stack([np.where(wrong, (labels + 1) % 4, labels)] * 3)

    found = {arm.name: answers(0) for arm in ARMS} | {"augmented": answers(40), "class_balanced": answers(10)}
    said = ruling(found, labels, classes=["a", "b", "c", "d"], rare=[3], bootstrap=500, seed=0)
    assert said["verdict"] == "benefit"
    assert said["best_without"] == "class_balanced"
    assert said["gains"]["real"]["value"] == pytest.approx(0.1)
    assert said["gains"]["class_balanced"]["value"] == pytest.approx(0.075)
    alone = said["arms"]["augmented"]["macro"]
    width = {name: said["gains"][name]["high"] - said["gains"][name]["low"] for name in WITHOUT}
    assert width["class_balanced"] < 0.7 * (alone["high"] - alone["low"]), "pairs differ in few images"
    assert said["arms"]["real"]["seeds"] == pytest.approx([1 - hard.mean()] * 3)
    assert said["floor"]["std"] == 0
    assert said["per_class"]["a"]["test"] == 100
    total = np.mean([of["gain"]["real"]["value"] for of in said["per_class"].values()])
    assert total == pytest.approx(0.1)
    assert said["n"] == {"seeds": 3, "test": 400, "classes": 4, "bootstrap": 500}
    swapped = found | {"augmented": found["real"], "real": found["augmented"]}
    assert ruling(swapped, labels, classes="abcd", rare=[3], bootstrap=500, seed=0)["verdict"] == "harm"
