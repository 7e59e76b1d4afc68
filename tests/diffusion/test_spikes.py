from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.spikes import DECAY
from diffusion.training import Progress, TrainingState, fit
from tests.diffusion.test_training import BATCH, OPTIMIZATION, Loss, Network, assert_same, positions, saved


def spiked(state: TrainingState, target_images: int, *, at: int | None = None) -> Iterator[Progress]:
    """With a loss a thousand times as large in the step that begins at `at`."""

    def loss(positions: np.ndarray) -> Tensor:
        return Loss(state.module)(positions) * (1000.0 if positions[0] == at else 1.0)

    return fit(
        state,
        positions(state.images_seen),
        loss,
        optimization=OPTIMIZATION,
        batch=BATCH,
        target_images=target_images,
    )


def test_a_spike_changes_nothing_but_the_count_and_is_not_typical():
    state = TrainingState.start(Network(), OPTIMIZATION, spike=100.0)
    norms = [progress.grad_norm.item() for progress in spiked(state, 75)]
    weights = DECAY ** np.arange(14, -1, -1)
    assert state.spikes is not None
    assert state.spikes.typical.item() == pytest.approx(
        np.exp(weights @ np.log(norms) / weights.sum()), rel=1e-5
    )
    before = saved(state)
    (progress,) = spiked(state, 80, at=75)
    assert progress.grad_norm.item() > 100 * max(norms)
    after = saved(state)
    assert after.pop("skipped") == 1
    assert after.pop("images_seen") == 80
    kept = {name: t for name, t in after.items() if not name.startswith("ema.")}
    assert "spikes" in kept
    assert_same(kept, {name: before[name] for name in kept})
    assert [int(progress.skipped) for progress in spiked(state, 90)] == [1, 1]


def test_nothing_is_told_of_the_first_steps():
    state = TrainingState.start(Network(), OPTIMIZATION, spike=100.0)
    assert [int(progress.skipped) for progress in spiked(state, 40, at=20)] == [0] * 8


def test_what_is_typical_is_resumed_and_whether_it_is_asked_for_changes_no_other_bit():
    def begun(spike: float | None) -> TrainingState:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return TrainingState.start(Network(), OPTIMIZATION, spike=spike)

    unbroken, plain, first, second = begun(100.0), begun(None), begun(100.0), begun(100.0)
    list(spiked(unbroken, 120, at=75))
    next(p for p in spiked(first, 120, at=75) if p.images_seen == 55)
    second.load_state_dict(saved(first))
    list(spiked(second, 120, at=75))
    assert_same(saved(second), saved(unbroken))

    older = begun(100.0)
    list(spiked(plain, 50))
    assert "spikes" not in saved(plain)
    older.load_state_dict(saved(plain))  # a checkpoint from before it was asked for
    assert older.spikes is not None
    assert older.spikes.seen.tolist() == [0, 0]
    fresh = begun(100.0)
    list(spiked(fresh, 50))
    assert_same({name: t for name, t in saved(fresh).items() if name != "spikes"}, saved(plain))
