from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion import randomness

POSITIONS = np.arange(1000, 1012)


def test_a_positions_numbers_do_not_depend_on_what_is_drawn_beside_it():
    together = randomness.normal(7, POSITIONS, (2, 3))
    shuffled = np.random.default_rng(0).permutation(len(POSITIONS))
    assert randomness.normal(7, POSITIONS[shuffled], (2, 3)).equal(together[shuffled])
    assert randomness.normal(7, POSITIONS[4:5], (2, 3)).equal(together[4:5])

    uniform = randomness.uniform(7, POSITIONS, "drop")
    assert randomness.uniform(7, POSITIONS[shuffled], "drop").equal(uniform[shuffled])


def test_seeds_streams_and_positions_have_numbers_of_their_own():
    base = randomness.normal(0, np.arange(100), (50,), "noise")
    for other in (
        randomness.normal(1, np.arange(100), (50,), "noise"),
        randomness.normal(0, np.arange(100), (50,), "posterior"),
        randomness.normal(0, np.arange(1, 101), (50,), "noise"),
    ):
        correlation = torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 4 / 5000**0.5


def test_no_number_of_one_position_is_another_positions_too():
    noise = randomness.normal(0, np.arange(100), (50,))
    assert len(noise.unique()) > 0.999 * noise.numel()


def test_noise_is_standard_normal_within_and_across_positions():
    noise = randomness.normal(3, np.arange(400), (25,)).double().numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(noise[:, 0], "norm").pvalue > 1e-3
    assert stats.kstest(np.corrcoef(noise.T)[np.triu_indices(25, 1)] * 400**0.5, "norm").pvalue > 1e-3


def test_uniform_numbers_are_uniform_and_never_0_or_1():
    u = randomness.uniform(3, np.arange(4000), "drop")
    assert stats.kstest(u.double().numpy(), "uniform").pvalue > 1e-3
    extremes = randomness._open(np.array([0.0, np.nextafter(1.0, 0.0)]))
    assert extremes.tolist() == [2**-24, 1 - 2**-24]


@pytest.mark.parametrize("batch", [7, 64])
def test_each_global_batch_has_one_time_in_every_stratum(batch: int):
    u = randomness.stratified(5, np.arange(3 * batch), batch).double().reshape(3, batch)
    assert torch.floor(u * batch).sort(1).values.equal(torch.arange(batch).double().expand(3, -1))
    # The offset and the order are new in each batch, else a position would always have the same time.
    assert not u[0].equal(u[1])
    assert not u[0].argsort().equal(u[1].argsort())


@pytest.mark.parametrize("world", [2, 3])
def test_times_do_not_depend_on_the_number_of_ranks(world: int):
    positions = np.arange(700, 700 + 3 * 16)  # beginning within a batch, as a resumed training may
    whole = randomness.stratified(5, positions, 16)
    joined = torch.empty_like(whole)
    for rank in range(world):
        joined[rank::world] = randomness.stratified(5, positions[rank::world], 16)
    assert joined.equal(whole)


def test_stratified_times_leave_a_batchs_mean_with_far_less_variance():
    u = randomness.stratified(0, np.arange(100 * 64), 64).double().reshape(100, 64)
    # Independent numbers would give sqrt(64) times as much.
    assert u.mean(1).std().item() == pytest.approx((1 / 12) ** 0.5 / 64, rel=0.2)
    assert stats.kstest(u[:, 0].numpy(), "uniform").pvalue > 1e-3
