"""The order in which training sees samples: a function of the seed and of how many were seen."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` samples in an epoch, int64; read-only."""
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n).astype(np.int64)
    order.flags.writeable = False
    return order


@dataclass(frozen=True)
class TrainingStream:
    """This rank's share of each global batch: (positions in the stream, indices of samples), without end.

    Batches straddle epochs and none is dropped; a rank has every `world`-th place of a batch, so shares may
    differ by one, and the global order is the same for any number of ranks.
    """

    length: int
    """Samples."""
    seed: int
    batch: int
    """Of all ranks together."""
    rank: int = 0
    world: int = 1
    images_seen: int = 0
    """Where it starts: its whole state."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = self.images_seen
        while True:
            positions = np.arange(start, start + self.batch, dtype=np.int64)[self.rank :: self.world]
            yield positions, self.indices(positions)
            start += self.batch

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """The sample at each place of the stream."""
        epochs, places = np.divmod(positions, self.length)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            indices[mine] = permutation(self.seed, epoch, self.length)[places[mine]]
        return indices
