"""Splits and shards by hash: in the stated shares, and at rest when images are added."""

from __future__ import annotations

from collections import Counter

import pytest

from pipelines.sources.split import Split, assign, shard_names

KEYS = [f"k{n:05d}" for n in range(20_000)]


def test_shares_are_kept() -> None:
    split = Split(validation=0.1, test=0.2)
    found = assign(KEYS, KEYS, [None] * len(KEYS), range(len(KEYS)), split=split, seed=0)
    counts = Counter(found.splits)
    # Four standard deviations of a binomial.
    assert abs(counts["validation"] / 20_000 - 0.1) < 4 * (0.09 / 20_000) ** 0.5
    assert abs(counts["test"] / 20_000 - 0.2) < 4 * (0.16 / 20_000) ** 0.5
    other = assign(KEYS, KEYS, [None] * len(KEYS), range(len(KEYS)), split=split, seed=1)
    assert other.splits != found.splits


def test_a_cluster_goes_where_its_smallest_key_goes() -> None:
    split = Split(validation=0.3, test=0.3)
    clusters = [n // 4 * 4 for n in range(400)]
    keys = KEYS[:400]
    alone = assign(keys[::4], keys[::4], [None] * 100, range(100), split=split, seed=0).splits
    found = assign(keys, keys, [None] * 400, clusters, split=split, seed=0)
    assert found.splits == [place for place in alone for _ in range(4)]
    assert (found.clusters, found.clustered, found.leaks) == (100, 400, 0)


def test_what_is_stated_stays_and_the_rest_follows() -> None:
    found = assign(
        ["a", "b", "c", "d", "e"],
        ["1", "2", "2", "4", "5"],
        [None, "test", "train", "validation", None],
        [0, 0, 0, 3, 3],
        split=Split(validation=0, test=0),
        seed=0,
    )
    assert found.splits == ["test", "test", "train", "validation", "validation"]
    assert (found.leaks, found.exact_leaks) == (2, 1)


@pytest.mark.parametrize(
    ("count", "shards"), [(1, 1), (100, 1), (101, 2), (200, 2), (201, 4), (800, 8), (801, 16)]
)
def test_a_split_has_a_power_of_two_of_shards(count: int, shards: int) -> None:
    names = shard_names(KEYS[:count], ["train"] * count, 100)
    assert set(names) <= {f"{n:05d}" for n in range(shards)}
    if count >= 100:
        assert len(set(names)) == shards
        assert max(Counter(names).values()) < 160


def test_one_splits_growth_moves_no_other() -> None:
    before = shard_names(KEYS[:300], ["train"] * 100 + ["test"] * 200, 100)
    after = shard_names(KEYS[:900], ["train"] * 100 + ["test"] * 200 + ["train"] * 600, 100)
    assert after[100:300] == before[100:300]
    # Doubling splits each shard in two: nothing changes places between two that were apart.
    few, many = (shard_names(KEYS[:1600], ["train"] * 1600, size) for size in (200, 100))
    assert {(int(a), int(b) // 2) for a, b in zip(few, many, strict=True)} == {(n, n) for n in range(8)}


@pytest.mark.parametrize("wrong", [{"validation": -0.1}, {"validation": 0.5, "test": 0.5}, {"distance": 8}])
def test_senseless_splits_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="split"):
        Split(**wrong)
