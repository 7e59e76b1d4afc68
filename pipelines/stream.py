"""The order in which training sees samples: a function of the seed and of how many were seen."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from pipelines.interleaving import Interleaving
from pipelines.shuffling import BlockOrder, Blocks, ShuffleConfig, drawn


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` samples in an epoch, int64; read-only."""
    return drawn(seed, epoch, n)


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One dataset's samples, by number from 0 on."""

    length: int
    groups: tuple[np.ndarray, ...] = ()
    """Numbers of each group's samples, ascending, if a batch must be of one group; together all of them."""
    bounds: np.ndarray | None = None
    """First sample of each shard, and at last how many there are; int64. One shard if None."""
    weight: float | None = None
    """Share in the training next to other lines' weights; None, for all of them, is each one's length."""


@dataclass(frozen=True)
class TrainingStream:
    """This rank's share of each global batch: (positions in the stream, indices of samples), without end.

    Batches straddle epochs and none is dropped; a rank has every `world`-th place of a batch, so shares may
    differ by one, and the global order is the same for any number of ranks.

    Of several `lines` each has epochs of its own, in each of which each of its samples comes exactly once;
    whose turn it is depends on their weights and on the position (`Interleaving`).

    With groups each batch is of one group, so that it has one size. A group has epochs of its own, one
    permutation after the other, from which its batches are cut; whose turn it is depends on the groups'
    lengths and on `images_seen`. So all ranks have the same group at the same step, and all samples of a line
    are seen equally often, to within two batches of a group. Of several lines each group takes turns by its
    share of its line's weight.
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
    """Indices of each group's samples, if there is more than one and `lines` are not given."""
    lines: tuple[Line, ...] = field(default=(), compare=False)
    """Whose samples are numbered one line after the other; together `length`. One line if empty."""
    shuffle: ShuffleConfig | None = None
    """How an epoch is drawn; as a whole if None."""

    def __post_init__(self) -> None:
        for line in self._lines:
            if line.groups and sum(map(len, line.groups)) != line.length:
                raise ValueError(f"The groups hold {sum(map(len, line.groups))} of {line.length} samples.")
        if sum(line.length for line in self._lines) != self.length:
            raise ValueError(f"The lines do not hold {self.length} samples.")
        if self._grouped and self.images_seen % self.batch:
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
        if len(self._cells) == 1:
            return self._cells[0].at(positions)
        turn = self.batch if self._grouped else self.shuffle.run if self.shuffle is not None else 1
        turns, places = np.divmod(positions, turn)
        found, inverse = np.unique(turns, return_inverse=True)
        whose = np.array([self._turns.at(n) for n in found.tolist()], np.int64)[inverse]
        own = whose[:, 1] * turn + places
        indices = np.empty_like(positions)
        for cell in np.unique(whose[:, 0]).tolist():
            mine = whose[:, 0] == cell
            indices[mine] = self._cells[cell].at(own[mine])
        return indices

    @functools.cached_property
    def _lines(self) -> tuple[Line, ...]:
        if self.lines:
            return self.lines
        return (Line(length=self.length, groups=self.groups if len(self.groups) > 1 else ()),)

    @property
    def _grouped(self) -> bool:
        return any(line.groups for line in self._lines)

    @functools.cached_property
    def _cells(self) -> list[_Cell]:
        """All that take turns: groups where batches are of one, else lines."""
        starts = itertools.accumulate((line.length for line in self._lines), initial=0)
        cells = []
        for number, (line, start) in enumerate(zip(self._lines, starts, strict=False)):
            for group, rows in enumerate(line.groups if self._grouped and line.groups else (None,)):
                cells.append(_Cell(self.seed, self.shuffle, line, (number, group), start, rows))
        return cells

    @functools.cached_property
    def _turns(self) -> Interleaving:
        if len(self._lines) == 1 or all(line.weight is None for line in self._lines):
            return Interleaving([cell.length for cell in self._cells])
        shares = [
            _exact(self._lines[number].weight) * cell.length / self._lines[number].length
            for cell in self._cells
            for number in (cell.cell[0],)
        ]
        return Interleaving(_integers(shares))


class _Cell:
    """A line's samples, or one group of them: epochs one after the other."""

    def __init__(
        self,
        seed: int,
        shuffle: ShuffleConfig | None,
        line: Line,
        cell: tuple[int, int],
        start: int,
        rows: np.ndarray | None,
    ) -> None:
        self.seed, self.shuffle, self.line, self.cell, self.start, self.rows = (
            seed,
            shuffle,
            line,
            cell,
            start,
            rows,
        )
        self.length = line.length if rows is None else len(rows)
        self._orders: dict[int, np.ndarray | BlockOrder] = {}

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The samples at places of its own stream."""
        epochs, places = np.divmod(positions, self.length)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            indices[mine] = self._order(epoch)[places[mine]]
        return self.start + (indices if self.rows is None else self.rows[indices])

    def _order(self, epoch: int) -> np.ndarray | BlockOrder:
        if self.shuffle is None or self.length <= self.shuffle.window:
            if self.cell == (0, 0) and self.rows is None:
                return permutation(self.seed, epoch, self.length)
            return self._kept(epoch, lambda: drawn(self.seed, epoch, self.length, self.cell))
        config = self.shuffle
        return self._kept(
            epoch, lambda: BlockOrder(config, self._blocks, seed=self.seed, epoch=epoch, cell=self.cell)
        )

    def _kept(self, epoch: int, make: Callable[[], np.ndarray | BlockOrder]) -> np.ndarray | BlockOrder:
        if epoch not in self._orders:
            while self._orders:  # before the next one is made: of a long epoch two take twice the memory
                self._orders.popitem()
            self._orders[epoch] = make()
        return self._orders[epoch]

    @functools.cached_property
    def _blocks(self) -> Blocks:
        bounds = self.line.bounds
        if bounds is None:
            bounds = np.array([0, self.line.length], np.int64)
        if self.rows is not None:
            bounds = np.searchsorted(self.rows, bounds)
        assert self.shuffle is not None
        return Blocks(bounds, self.shuffle.block)


def _exact(weight: float | None) -> Fraction:
    if weight is None:
        raise ValueError("Of several lines all have a weight, or none.")
    return Fraction(str(weight))


def _integers(shares: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers in the same ratios."""
    scale = math.lcm(*(share.denominator for share in shares))
    whole = [int(share * scale) for share in shares]
    return [n // math.gcd(*whole) for n in whole]
