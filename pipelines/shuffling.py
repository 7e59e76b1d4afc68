"""The order of an epoch's samples: drawn as a whole while it is small, and in blocks where it is not.

A permutation of billions of samples takes gigabytes in every process, and makes each read of an object store
one of a single sample. So a long epoch is drawn in two stages, as readers of shards do with a buffer (Aizman
et al., 2019, "WebDataset"), but without a buffer's state: blocks of rows that lie side by side in a shard are
permuted; what they make, end to end, is cut into windows, a window into as many stretches as there are lanes,
and a stretch is permuted. A window's samples come from its lanes in turn. So any place is found at once, a
batch has samples of as many blocks as it can, and a worker that has every n-th place of the order, n a
divisor of the lanes, has lanes of its own, and reads their blocks whole.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class ShuffleConfig:
    """How an epoch is shuffled. One no longer than the window is permuted as a whole."""

    window: int = 2**20
    """Samples that are mixed with one another; a multiple of `lanes`."""
    block: int = 512
    """Samples that lie side by side in a shard and are read together, at most."""
    lanes: int = 1024
    """Sequences that a window's samples come from in turn. Workers whose number divides it, and divides the
    batch, read blocks that no other reads, but for those at the ends."""
    run: int = 1
    """Places in a row that are of one dataset, where several are mixed. A multiple of the workers keeps each
    at blocks of its own, as `lanes` does; 1 mixes best, and is right where reading is cheap."""

    def __post_init__(self) -> None:
        if min(self.window, self.block, self.lanes, self.run) < 1 or self.window % self.lanes:
            raise ValueError(
                f"shuffle.window is {self.window} and lanes {self.lanes}: each of shuffle's numbers must be "
                "at least 1, and window a multiple of lanes."
            )


def drawn(seed: int, epoch: int, n: int, cell: tuple[int, int] = (0, 0), part: int = 0) -> np.ndarray:
    """A permutation of `n`, int64, read-only.

    Args:
        cell: number of the dataset and of the group in it that it is of.
        part: 0 for all samples or blocks; 1 + k for stretch k of the epoch.
    """
    import numpy as np

    dataset, group = cell
    random = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, part, dataset, group]))
    order = random.permutation(n).astype(np.int64)
    order.flags.writeable = False
    return order


@dataclass(frozen=True, eq=False)
class Blocks:
    """Where each block lies: shards cut into equal parts, to within one, of `block` samples at most."""

    bounds: np.ndarray
    """First sample of each shard, and at last how many there are; int64."""
    block: int

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """How many blocks there are up to the end of each shard."""
        import numpy as np

        return np.cumsum(-(-np.diff(self.bounds) // self.block))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def sizes(self) -> np.ndarray:
        """Samples of each block, uint32."""
        import numpy as np

        found = np.empty(len(self), np.uint32)
        for start in range(0, len(self), _PIECE):
            first, end = self.of(np.arange(start, min(start + _PIECE, len(self))))
            found[start : start + _PIECE] = end - first
        return found

    def of(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First sample of each block, and the one behind its last."""
        import numpy as np

        shards = np.searchsorted(self.ends, blocks, side="right")
        before = np.where(shards > 0, self.ends[shards - 1], 0)
        count, start = self.ends[shards] - before, self.bounds[shards]
        rows, place = self.bounds[shards + 1] - start, blocks - before
        return start + place * rows // count, start + (place + 1) * rows // count


class BlockOrder:
    """One epoch's order of samples in blocks: sample by place, in O(log blocks), without a walk.

    It holds 12 bytes a block, and the permutations of the stretches that were asked for last.
    """

    def __init__(
        self, config: ShuffleConfig, blocks: Blocks, *, seed: int, epoch: int, cell: tuple[int, int] = (0, 0)
    ) -> None:
        import numpy as np

        self.config, self.blocks, self.seed, self.epoch, self.cell = config, blocks, seed, epoch, cell
        self.length = int(blocks.bounds[-1])
        self._order = drawn(seed, epoch, len(blocks), cell).astype(np.uint32)
        self._ends = np.cumsum(blocks.sizes()[self._order], dtype=np.int64)
        self._stretches: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Samples at places of the epoch, [len(places)] int64."""
        import numpy as np

        config = self.config
        windows, within = np.divmod(places, config.window)
        whole, over = np.divmod(
            np.minimum(self.length - windows * config.window, config.window), config.lanes
        )
        steps, lanes = np.divmod(within, config.lanes)
        first = windows * config.window + lanes * whole + np.minimum(lanes, over)
        size = whole + (lanes < over)
        part = windows * config.lanes + lanes
        chain = np.empty_like(places)
        for n in np.unique(part).tolist():
            mine = part == n
            where = int(np.argmax(mine))
            chain[mine] = first[where] + self._stretch(n, int(size[where]))[steps[mine]]
        blocks = np.searchsorted(self._ends, chain, side="right")
        before = np.where(blocks > 0, self._ends[blocks - 1], 0)
        return self.blocks.of(self._order[blocks].astype(np.int64))[0] + chain - before

    @property
    def nbytes(self) -> int:
        """Of memory."""
        kept = sum(order.nbytes for order in self._stretches.values())
        return self._order.nbytes + self._ends.nbytes + kept

    def _stretch(self, number: int, size: int) -> np.ndarray:
        import numpy as np

        if number in self._stretches:
            self._stretches.move_to_end(number)
            return self._stretches[number]
        order = drawn(self.seed, self.epoch, size, self.cell, 1 + number).astype(np.uint32)
        self._stretches[number] = order
        while len(self._stretches) > 2 * self.config.lanes:
            self._stretches.popitem(last=False)
        return order


_PIECE = 1 << 18
"""Blocks that are looked at together: the arrays on the way are longer than what is kept."""
