"""Groups in turn: in proportion at any step, and found without the steps before."""

from __future__ import annotations

import random

import pytest

from pipelines.interleaving import Interleaving

FIBONACCI = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144]
WEIGHTS = {
    "one": [7],
    "equal": [5] * 9,
    "many small beside a large": [1000, *[25] * 40],
    "deep": FIBONACCI,
    "far apart": [1, 10**6],
    "any": [random.Random(3).randint(1, 10**5) for _ in range(25)],
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_each_group_has_its_share_of_any_prefix(weights: list[int]) -> None:
    turns, total = Interleaving(weights), sum(weights)
    seen = [0] * len(weights)
    for step in range(3 * min(total, 1000)):
        group, before = turns.at(step)
        assert before == seen[group]
        seen[group] += 1
        assert turns.before(step + 1) == seen
        assert all(abs(n * total - (step + 1) * w) < 2 * total for n, w in zip(seen, weights, strict=True))
    # After as many steps as there are samples, exactly as many as each has.
    assert turns.before(total * 5) == [5 * weight for weight in weights]


def test_it_is_found_as_fast_far_away() -> None:
    turns = Interleaving(WEIGHTS["any"])
    group, before = turns.at(10**15)
    assert turns.before(10**15)[group] == before
    assert turns.before(10**15 + 1)[group] == before + 1


def test_small_groups_do_not_come_all_at_once() -> None:
    """Forty small ones together have half of the steps: never two of them in a row."""
    turns = Interleaving(WEIGHTS["many small beside a large"])
    large = [turns.at(step)[0] == 0 for step in range(200)]
    assert large == [large[0], not large[0]] * 100


def test_empty_groups_are_refused() -> None:
    for weights in ([], [3, 0]):
        with pytest.raises(ValueError, match="leave empty ones out"):
            Interleaving(weights)
