"""The order in which training sees samples: a function of the seed and of how many were seen."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipelines.interleaving import Interleaving


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` samples in an epoch, int64; read-only."""
    return _drawn(seed, epoch, n)


@dataclass(frozen=True)
class TrainingStream:
    """This rank's share of each global batch: (positions in the stream, indices of samples), without end.

    Batches straddle epochs and none is dropped; a rank has every `world`-th place of a batch, so shares may
    differ by one, and the global order is the same for any number of ranks.

    With `groups` each batch is of one group, so that it has one size. A group has epochs of its own, one
    permutation after the other, from which its batches are cut; whose turn it is depends on the groups'
    lengths and on `images_seen` (`Interleaving`). So all ranks have the same group at the same step, and all
    samples are seen equally often, to within two batches of a group.
    """

    length: int
    """Samples."""
    seed: int
    batch: int
    """Of all ranks together."""
    rank: int = 0
    world: int = 1
    images_seen: int = 0
    """Where it starts: its whole state. With several groups, a multiple of `batch`."""
    groups: tuple[np.ndarray, ...] = field(default=(), compare=False)
    """Indices of each group's samples, if there is more than one; together all of them."""

    def __post_init__(self) -> None:
        if len(self.groups) < 2:
            return
        if sum(map(len, self.groups)) != self.length:
            raise ValueError(f"The groups hold {sum(map(len, self.groups))} of {self.length} samples.")
        if self.images_seen % self.batch:
            raise ValueError(
                f"A training with batches of {self.batch} cannot have stopped at {self.images_seen:,} "
                "images: continue it with the batch that it began with."
            )

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = self.images_seen
        while True:
            positions = np.arange(start, start + self.batch, dtype=np.int64)[self.rank :: self.world]
            yield positions, self.indices(positions)
            start += self.batch

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """The sample at each place of the stream."""
        indices = np.empty_like(positions)
        if len(self.groups) < 2:
            epochs, places = np.divmod(positions, self.length)
            for epoch in np.unique(epochs).tolist():
                mine = epochs == epoch
                indices[mine] = permutation(self.seed, epoch, self.length)[places[mine]]
            return indices
        steps, places = np.divmod(positions, self.batch)
        for step in np.unique(steps).tolist():
            mine = steps == step
            group, before = self._turns.at(step)
            indices[mine] = self._of(group, before * self.batch + places[mine])
        return indices

    @functools.cached_property
    def _turns(self) -> Interleaving:
        return Interleaving([len(group) for group in self.groups])

    @functools.cached_property
    def _orders(self) -> dict[int, tuple[int, np.ndarray]]:
        """Group -> the epoch that it was last asked for, and its order."""
        return {}

    def _of(self, group: int, positions: np.ndarray) -> np.ndarray:
        """The samples at places of a group's own stream."""
        samples = self.groups[group]
        epochs, places = np.divmod(positions, len(samples))
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            if self._orders.get(group, (-1,))[0] != epoch:
                self._orders[group] = (epoch, _drawn(self.seed, epoch, len(samples), group))
            mine = epochs == epoch
            indices[mine] = samples[self._orders[group][1][places[mine]]]
        return indices


def _drawn(seed: int, epoch: int, n: int, group: int = 0) -> np.ndarray:
    random = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, group]))
    order = random.permutation(n).astype(np.int64)
    order.flags.writeable = False
    return order
