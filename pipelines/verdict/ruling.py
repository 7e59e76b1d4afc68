"""From classifiers' answers to a verdict: macro accuracies, paired gains with intervals, and the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pipelines.verdict.arms import ARMS, PLAIN, WITH, WITHOUT

Verdict = Literal["benefit", "no benefit", "harm"]

RULE = (
    "benefit if the 95 % interval of the gain in macro accuracy on the real test split lies above 0 against "
    "every arm without generated images, and so against the best of them; harm if it lies below 0 against "
    "real images alone; else no benefit"
)
"""Fixed before anything is measured."""


def ruling(
    answers: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    classes: Sequence[str],
    rare: Sequence[int],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """What the arms' answers to the test images say, in JSON types.

    Args:
        answers: arm name -> predicted classes, [seeds, images]; generated images alone may be missing.
        labels: true classes of the images.
        rare: the classes that have fewest real training images, judged for themselves beside the whole.
        bootstrap: resamples of the test images.
    """

    def estimate(
        scores: np.ndarray, of: Sequence[int] | None = None, *, least: float = 0.0
    ) -> dict[str, float]:
        return interval(scores, labels, of=of, least=least, bootstrap=bootstrap, seed=seed)

    def gain(name: str, of: Sequence[int] | None = None) -> dict[str, float]:
        return estimate(right[WITH] - right[name], of, least=-1.0)

    right = {name: (found == labels).astype(np.int64) for name, found in answers.items()}
    present = sorted(set(labels.tolist()))
    arms = {}
    for name, scores in right.items():
        by_seed = [float(np.mean(macro(one, labels))) for one in scores]
        arms[name] = {
            "macro": estimate(scores),
            "rare": estimate(scores, [c for c in rare if c in present] or present),
            "seeds": by_seed,
            "per_class": {classes[c]: float(scores[:, labels == c].mean()) for c in present},
        }
    gains = {name: gain(name) for name in WITHOUT}
    best = max(WITHOUT, key=lambda name: arms[name]["macro"]["value"])
    per_class = {
        classes[c]: {
            "test": int((labels == c).sum()),
            "gain": {name: gain(name, [c]) for name in (PLAIN, best)},
        }
        for c in present
    }
    spread = arms[PLAIN]["seeds"]
    return {
        "verdict": verdict(gains),
        "rule": RULE,
        "best_without": best,
        "gains": gains,
        "arms": {arm.name: {"label": arm.label, **arms[arm.name]} for arm in ARMS if arm.name in arms},
        "per_class": per_class,
        "floor": {"low": min(spread), "high": max(spread), "std": float(np.std(spread, ddof=1))},
        "n": {"seeds": len(spread), "test": len(labels), "classes": len(present), "bootstrap": bootstrap},
    }


def verdict(gains: Mapping[str, Mapping[str, float]]) -> Verdict:
    """`RULE`, on the gain of real + generated over each arm without generated images."""
    if all(gains[name]["low"] > 0 for name in WITHOUT):
        return "benefit"
    return "harm" if gains[PLAIN]["high"] < 0 else "no benefit"


def macro(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean score of each class that is there, of [..., images]; their mean is the macro accuracy."""
    return np.array([scores[..., labels == c].mean() for c in np.unique(labels)])


def interval(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    of: Sequence[int] | None = None,
    least: float = 0.0,
    bootstrap: int,
    seed: int,
) -> dict[str, float]:
    """Mean over classes of whole-number scores [seeds, images], with its 95 % interval over seeds and images.

    All seeds are judged on the same images, so there are two sources of error, which are drawn independently
    and added. Images: bootstrap within each class, of scores averaged over seeds. Seeds: too few to be
    resampled (of 3, a bootstrap would give two thirds of the variance and a normal's tails), so the error of
    their mean is drawn from Student's t with seeds - 1 degrees of freedom. A difference of two arms is given
    as scores of -1, 0 and 1: paired by seed and by image.

    Args:
        of: the classes that the mean is over; all if None.
        least: what the mean can be at least; 1 is what it can be at most.
    """
    chosen = sorted(set(labels.tolist())) if of is None else list(of)
    draws = np.random.default_rng(seed)
    seeds = len(scores)
    total = np.zeros(bootstrap)
    by_seed = np.zeros(seeds)
    for c in chosen:
        mine = scores[:, labels == c]
        by_seed += mine.mean(1) / len(chosen)
        # Scores summed over seeds are few different numbers: how often each is drawn is multinomial.
        values, counts = np.unique(mine.sum(0), return_counts=True)
        drawn = draws.multinomial(counts.sum(), counts / counts.sum(), size=bootstrap)
        total += drawn @ values / counts.sum() / seeds / len(chosen)
    error = by_seed.std(ddof=1) / np.sqrt(seeds)
    total += error * draws.standard_t(seeds - 1, size=bootstrap)
    # Two seeds that differ give an interval wider than accuracies can be.
    low, high = np.quantile(total, [0.025, 0.975]).clip(least, 1.0).tolist()
    return {"value": float(by_seed.mean()), "low": low, "high": high}
