"""A long tail takes what it says from training, by key, and touches nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipelines.sources.long_tail import LongTail, thinned

CLASSES, EACH = 10, 300
KEYS = [f"k{n}" for n in range(CLASSES * EACH + 200)]
LABELS = [n % CLASSES for n in range(len(KEYS))]
SPLITS = ["train"] * (CLASSES * EACH) + ["test"] * 200
ALONE = list(range(len(KEYS)))


def cut(tail: LongTail, *, clusters: list[int] = ALONE, **changes) -> list[str]:
    given = {"labels": LABELS, "splits": SPLITS, "usable": [True] * len(KEYS)} | changes
    return thinned(
        tail, KEYS, given["labels"], given["splits"], clusters, usable=given["usable"], classes=CLASSES
    )


def kept(splits: list[str], split: str = "train") -> set[int]:
    return {n for n, found in enumerate(splits) if found == split}


def test_the_profile_is_that_of_the_paper() -> None:
    # Cao et al. (2019): n_i = n * mu^i; CIFAR-10 with 5,000 of the first and a ratio of 100.
    counts = LongTail(head=5000, ratio=100).counts(10)
    assert counts == [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]
    assert LongTail(head=7, ratio=1).counts(3) == [7, 7, 7]
    assert LongTail(head=3, ratio=100).counts(4) == [3, 1, 1, 1], "no class is left without an image"
    assert LongTail(head=9, ratio=3).counts(1) == [9]


def test_each_class_has_its_share_and_the_test_split_is_whole() -> None:
    tail = LongTail(head=200, ratio=20, validation=15)
    splits = cut(tail)
    train = Counter(LABELS[n] for n in kept(splits))
    assert [train[c] for c in range(CLASSES)] == tail.counts(CLASSES)
    held_out = Counter(LABELS[n] for n in kept(splits, "validation"))
    assert set(held_out.values()) == {15}
    assert kept(splits, "test") == kept(SPLITS, "test")
    assert splits.count("") == CLASSES * EACH - sum(tail.counts(CLASSES)) - 150


def test_a_higher_count_adds_to_a_lower() -> None:
    few, more = (cut(LongTail(head=head, ratio=10, validation=20)) for head in (60, 120))
    assert kept(few) < kept(more)
    assert kept(few, "validation") == kept(more, "validation")
    reordered = np.random.default_rng(0).permutation(len(KEYS)).tolist()
    turned = thinned(
        LongTail(head=60, ratio=10),
        [KEYS[n] for n in reordered],
        [LABELS[n] for n in reordered],
        [SPLITS[n] for n in reordered],
        reordered,
        usable=[True] * len(KEYS),
        classes=CLASSES,
    )
    assert {reordered[n] for n in kept(turned)} == kept(cut(LongTail(head=60, ratio=10))), "keys alone decide"


def test_what_cannot_be_counted_stays_where_it_is() -> None:
    usable = [n % 7 != 0 for n in range(len(KEYS))]
    labels = [None if n % 11 == 0 else label for n, label in enumerate(LABELS)]
    splits = cut(LongTail(head=5, ratio=1), usable=usable, labels=labels)
    for n in range(CLASSES * EACH):
        if n % 7 == 0 or n % 11 == 0:
            assert splits[n] == "train"
    assert sum(splits[n] == "train" for n in range(CLASSES * EACH) if n % 7 and n % 11) == 50
    few = cut(LongTail(head=10_000, ratio=1))
    assert few == SPLITS, "a class that has fewer keeps them all"


def test_validation_never_holds_a_twin_of_a_training_image() -> None:
    clusters = [n // 20 for n in range(len(KEYS))]  # two of each class in each cluster
    splits = cut(LongTail(head=30, ratio=2, validation=40), clusters=clusters)
    trained = {clusters[n] for n in kept(splits)}
    assert not trained & {clusters[n] for n in kept(splits, "validation")}


@pytest.mark.parametrize("wrong", [{"head": 0}, {"ratio": 0.5}, {"ratio": float("inf")}, {"validation": -1}])
def test_senseless_tails_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="long_tail"):
        LongTail(**wrong)
