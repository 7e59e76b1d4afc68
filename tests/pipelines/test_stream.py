"""The training stream: one global order, whatever the number of ranks and wherever it starts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipelines.stream import TrainingStream, permutation

LENGTH, BATCH, SEED = 103, 16, 5
EPOCHS = 4
BATCHES = LENGTH * EPOCHS // BATCH


GROUPS = tuple(np.arange(a, b) for a, b in ((0, 5), (5, 40), (40, LENGTH)))
"""By size: the first has fewer samples than a batch has."""


def run(
    world: int, images_seen: int, batches: int, groups: tuple[np.ndarray, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and indices of all ranks, put back into the order of the global batch."""
    ranks = [
        TrainingStream(LENGTH, SEED, BATCH, rank=rank, world=world, images_seen=images_seen, groups=groups)
        for rank in range(world)
    ]
    positions, indices = [], []
    for shares in itertools.islice(zip(*ranks, strict=True), batches):
        for whole, part in ((positions, 0), (indices, 1)):
            batch = np.empty(BATCH, np.int64)
            for rank, share in enumerate(shares):
                batch[rank::world] = share[part]
            whole.append(batch)
    return np.concatenate(positions), np.concatenate(indices)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 16])
def test_the_order_is_the_same_for_any_number_of_ranks(world: int) -> None:
    positions, indices = run(world, 0, BATCHES)
    assert positions.tolist() == list(range(BATCHES * BATCH))
    assert indices.tolist() == run(1, 0, BATCHES)[1].tolist()


def test_each_sample_comes_once_an_epoch_and_none_is_dropped() -> None:
    indices = run(1, 0, BATCHES)[1]
    for epoch in range(EPOCHS - 1):
        assert sorted(indices[epoch * LENGTH : (epoch + 1) * LENGTH].tolist()) == list(range(LENGTH))
    assert indices[:LENGTH].tolist() != indices[LENGTH : 2 * LENGTH].tolist()


def test_it_resumes_at_any_place_with_any_number_of_ranks() -> None:
    whole = run(1, 0, BATCHES)[1]
    for seen, world in itertools.product(range(0, LENGTH * 2, 7), (1, 2, 4)):
        positions, indices = run(world, seen, 3)
        assert positions[0] == seen
        assert indices.tolist() == whole[seen : seen + 3 * BATCH].tolist()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert permutation(1, 2, 50).tolist() == permutation(1, 2, 50).tolist()
    assert (
        len({tuple(permutation(seed, epoch, 50).tolist()) for seed in range(4) for epoch in range(4)}) == 16
    )
    # Frozen: another order would end the promise that a training can be resumed by a later version.
    assert permutation(0, 0, 10).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]


def group_of(indices: np.ndarray) -> int:
    """The one group that all are of."""
    (found,) = {n for n, group in enumerate(GROUPS) for index in indices.tolist() if index in group}
    return found


def test_a_batch_is_of_one_group_and_each_has_its_share() -> None:
    batches = run(1, 0, 1000, GROUPS)[1].reshape(-1, BATCH)
    counts = np.cumsum([[group_of(batch) == n for n in range(3)] for batch in batches], axis=0)
    shares = np.arange(1, 1001)[:, None] * [len(group) / LENGTH for group in GROUPS]
    assert np.abs(counts - shares).max() < 2
    # By then each sample was seen as often as any other, but for a batch or two of its group.
    seen = np.bincount(batches.ravel(), minlength=LENGTH)
    assert seen.sum() == 1000 * BATCH
    for group in GROUPS:
        assert np.abs(seen[group] - 1000 * BATCH / LENGTH).max() < 1 + 2 * BATCH / len(group)


def test_each_sample_comes_once_an_epoch_of_its_group_and_none_is_dropped() -> None:
    batches = run(1, 0, 600, GROUPS)[1].reshape(-1, BATCH)
    orders = []
    for n, group in enumerate(GROUPS):
        own = np.concatenate([batch for batch in batches if group_of(batch) == n])
        epochs = len(own) // len(group)
        assert epochs > 50
        for epoch in range(epochs):
            orders.append(tuple(own[epoch * len(group) : (epoch + 1) * len(group)].tolist()))
            assert sorted(orders[-1]) == group.tolist()
    assert len(set(orders)) > 0.9 * len(orders)


@pytest.mark.parametrize("worlds", [(1, 1), (1, 2), (2, 1), (1, 3), (3, 3), (16, 5)])
def test_groups_resume_at_any_step_with_any_number_of_ranks(worlds: tuple[int, int]) -> None:
    """Three do not divide the batch of 16; 200 places to stop at."""
    before, after = worlds
    whole = run(1, 0, 205, GROUPS)[1]
    assert run(before, 0, 205, GROUPS)[1].tolist() == whole.tolist()
    for step in range(200):
        positions, indices = run(after, step * BATCH, 3, GROUPS)
        assert positions.tolist() == list(range(step * BATCH, (step + 3) * BATCH))
        assert indices.tolist() == whole[step * BATCH : (step + 3) * BATCH].tolist()


def test_ranks_have_the_same_group_at_the_same_step_and_shares_of_one_size() -> None:
    ranks = [TrainingStream(LENGTH, SEED, BATCH, rank=rank, world=3, groups=GROUPS) for rank in range(3)]
    for shares in itertools.islice(zip(*ranks, strict=True), 100):
        assert sorted(len(indices) for _, indices in shares) == [5, 5, 6]
        assert len({group_of(indices) for _, indices in shares}) == 1


def test_one_group_is_none() -> None:
    one = (np.arange(LENGTH),)
    for places in (0, 7, 160):
        assert run(2, places, 20, one)[1].tolist() == run(2, places, 20)[1].tolist()


def test_groups_of_one_length_have_orders_of_their_own() -> None:
    groups = (np.arange(32), np.arange(32, 64))
    stream = itertools.islice(TrainingStream(64, SEED, 32, groups=groups), 2)
    (_, first), (_, second) = stream
    assert (first % 32).tolist() != (second % 32).tolist()
    # Frozen, as the order above is.
    small = TrainingStream(6, 0, 4, groups=(np.arange(2), np.arange(2, 6)))
    assert [indices.tolist() for _, indices in itertools.islice(small, 4)] == [
        [5, 2, 3, 4],
        [0, 1, 1, 0],
        [3, 5, 2, 4],
        [3, 5, 2, 4],
    ]


def test_a_training_that_stopped_within_a_batch_had_another_batch() -> None:
    with pytest.raises(ValueError, match="the batch that it began with"):
        TrainingStream(LENGTH, SEED, BATCH, images_seen=24, groups=GROUPS)
    with pytest.raises(ValueError, match="40 of 103"):
        TrainingStream(LENGTH, SEED, BATCH, groups=GROUPS[:2])
