"""Several datasets in one stream: each has epochs of its own, wherever it is stopped and by how many run."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipelines.shuffling import ShuffleConfig
from pipelines.stream import Line, TrainingStream

SEED, BATCH, STOPS = 7, 8, 200
LENGTHS = (103, 331)
WEIGHTS = (0.7, 0.3)
SHUFFLE = ShuffleConfig(window=128, block=8, lanes=16)
"""The second dataset is longer than the window, and drawn in blocks; the first is not."""


def line(n: int, *, grouped: bool, weight: float | None) -> Line:
    """Rows of two sizes in turn, where there are sizes, in shards of 40."""
    length = LENGTHS[n]
    rows = np.arange(length)
    groups = (rows[rows % 3 != n], rows[rows % 3 == n]) if grouped else ()
    bounds = np.append(np.arange(0, length, 40), length)
    return Line(length=length, groups=groups, bounds=bounds, weight=weight)


KINDS = {
    "plain": (False, WEIGHTS, SHUFFLE),
    "by samples": (False, (None, None), SHUFFLE),
    "runs": (False, WEIGHTS, ShuffleConfig(window=128, block=8, lanes=16, run=4)),
    "buckets": (True, WEIGHTS, SHUFFLE),
}


def lines(kind: str) -> tuple[Line, ...]:
    grouped, weights, _ = KINDS[kind]
    return tuple(line(n, grouped=grouped, weight=weight) for n, weight in enumerate(weights))


def run(kind: str, world: int, images_seen: int, batches: int) -> np.ndarray:
    """The global batches that all ranks together make, [batches, BATCH]."""
    ranks = [
        TrainingStream(
            sum(LENGTHS),
            SEED,
            BATCH,
            rank=rank,
            world=world,
            images_seen=images_seen,
            lines=lines(kind),
            shuffle=KINDS[kind][2],
        )
        for rank in range(world)
    ]
    found = np.empty((batches, BATCH), np.int64)
    for n, shares in zip(range(batches), zip(*ranks, strict=True), strict=False):
        for rank, (positions, indices) in enumerate(shares):
            assert positions.tolist() == list(
                range(images_seen + n * BATCH + rank, images_seen + (n + 1) * BATCH, world)
            )
            found[n, rank::world] = indices
    return found


@pytest.fixture(scope="module")
def whole() -> dict[str, np.ndarray]:
    return {kind: run(kind, 1, 0, STOPS + 400) for kind in KINDS}


WORLDS = [(1, 1), (1, 2), (2, 1), (4, 2), (3, 3), (1, 3)]
"""Ranks before and after; three do not divide the batch of 8."""


@pytest.mark.parametrize("kind", list(KINDS))
def test_stopped_anywhere_it_goes_on_in_the_same_order(whole: dict[str, np.ndarray], kind: str) -> None:
    """Of the 200 places that the slow test stops at, every 13th, with each number of ranks in turn."""
    for (_, after), stop in zip(itertools.cycle(WORLDS), range(1, STOPS, 13), strict=False):
        assert run(kind, after, stop * BATCH, 2).tolist() == whole[kind][stop : stop + 2].tolist()
    assert run(kind, 3, 0, 40).tolist() == whole[kind][:40].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("before", "after"), WORLDS)
def test_200_places_to_stop_at(whole: dict[str, np.ndarray], kind: str, before: int, after: int) -> None:
    assert run(kind, before, 0, STOPS).tolist() == whole[kind][:STOPS].tolist()
    for stop in range(1, STOPS + 1):
        assert run(kind, after, stop * BATCH, 2).tolist() == whole[kind][stop : stop + 2].tolist()


@pytest.mark.parametrize("kind", ["plain", "by samples", "runs"])
def test_each_sample_comes_once_an_epoch_of_its_own_dataset(whole: dict[str, np.ndarray], kind: str) -> None:
    order, start = whole[kind].ravel(), 0
    for length in LENGTHS:
        own = order[(order >= start) & (order < start + length)] - start
        epochs = len(own) // length
        assert epochs >= 4
        orders = {tuple(own[n * length : (n + 1) * length].tolist()) for n in range(epochs)}
        assert all(sorted(one) == list(range(length)) for one in orders)
        assert len(orders) == epochs
        start += length


def test_under_buckets_it_is_once_an_epoch_of_its_dataset_and_size(whole: dict[str, np.ndarray]) -> None:
    cells = [
        start + group
        for start, one in zip((0, LENGTHS[0]), lines("buckets"), strict=True)
        for group in one.groups
    ]
    whose = []
    for batch in whole["buckets"]:
        (cell,) = {n for n, cell in enumerate(cells) if np.isin(batch, cell).any()}  # of one size
        whose.append(cell)
    for n, cell in enumerate(cells):
        own = whole["buckets"][np.array(whose) == n].ravel()
        for epoch in range(len(own) // len(cell)):
            assert sorted(own[epoch * len(cell) : (epoch + 1) * len(cell)].tolist()) == cell.tolist()
    shares = np.bincount(whose) / len(whose)
    wanted = [
        weight * len(group) / one.length
        for weight, one in zip(WEIGHTS, lines("buckets"), strict=True)
        for group in one.groups
    ]
    assert np.abs(shares - wanted).max() < 2 / len(whose) + 1e-9


def test_shares_are_the_weights_at_any_place(whole: dict[str, np.ndarray]) -> None:
    order = whole["plain"].ravel()
    seen = np.cumsum(order < LENGTHS[0])
    wanted = WEIGHTS[0] * np.arange(1, len(order) + 1)
    assert np.abs(seen - wanted).max() < 2
    by_samples = whole["by samples"].ravel()
    assert abs((by_samples < LENGTHS[0]).mean() - LENGTHS[0] / sum(LENGTHS)) < 2 / len(by_samples)


def test_runs_keep_ranks_at_lanes_of_their_own() -> None:
    """With runs as long as there are ranks, a rank has lanes of the long dataset to itself."""
    shuffle = ShuffleConfig(window=4096, block=64, lanes=16, run=4)
    both = (
        Line(length=50, weight=0.5),
        Line(length=16384, bounds=np.arange(0, 16385, 256), weight=0.5),
    )
    stream = TrainingStream(16434, SEED, 16, lines=both, shuffle=shuffle)
    found = stream.indices(np.arange(2 * 4096))
    blocks = [{n // 64 for n in (found[rank::4] - 50).tolist() if n >= 0} for rank in range(4)]
    for one, other in itertools.combinations(blocks, 2):
        assert len(one & other) <= 4  # of 16 each: where stretches end
    mixed = TrainingStream(
        16434, SEED, 16, lines=both, shuffle=ShuffleConfig(window=4096, block=64, lanes=16)
    )
    turns = mixed.indices(np.arange(16)) < 50
    assert 6 <= turns.sum() <= 10


def test_one_line_is_none() -> None:
    for grouped in (False, True):
        one = line(0, grouped=grouped, weight=3.0)
        plain = TrainingStream(LENGTHS[0], SEED, BATCH, groups=one.groups)
        other = TrainingStream(LENGTHS[0], SEED, BATCH, lines=(one,), shuffle=SHUFFLE)
        for (_, a), (_, b) in itertools.islice(zip(plain, other, strict=True), 60):
            assert a.tolist() == b.tolist()


def test_what_cannot_be_is_said() -> None:
    half = TrainingStream(434, SEED, BATCH, lines=(Line(length=103, weight=1.0), Line(length=331)))
    with pytest.raises(ValueError, match="have a weight, or none"):
        next(iter(half))
    with pytest.raises(ValueError, match="do not hold 5 samples"):
        TrainingStream(5, SEED, BATCH, lines=(Line(length=103),))
    with pytest.raises(ValueError, match="the batch that it began with"):
        TrainingStream(sum(LENGTHS), SEED, BATCH, images_seen=12, lines=lines("buckets"))
