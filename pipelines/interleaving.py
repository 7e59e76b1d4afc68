"""Batches of several groups of samples in turn, each group as often as it has samples; found without a walk.

A tree of two-way splits has the groups as its leaves. At each fork steps go left and right as a line is drawn
with two kinds of pixels (Bresenham, 1965): of the first k, round(k left / whole) go left. So how many of the
first k steps are whose takes one rounding a fork, for any k, and nothing has to be kept.

The tree joins the two lightest ever again (Huffman, 1952). A rounding is off by at most a half, and what is
off is passed on in proportion: e = (1 + p1 + p1 p2 + ...) / 2 with p a node's share of its parent. In such
a tree a node's share of its parent's parent is at most a half, so e stays below 2, however many groups.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Fork:
    left: int | _Fork
    """The heavier one; a number is a group's."""
    right: int | _Fork
    share: int
    """Weight of the left one,"""
    whole: int
    """of both."""

    def lefts(self, steps: int) -> int:
        """How many of the first `steps` go left; halves go up."""
        return (2 * steps * self.share + self.whole) // (2 * self.whole)


class Interleaving:
    """Which group each step is of: a function of the groups' weights and the step.

    Of the first k steps a group has its share to within 2, for any k and any number of groups.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """`ValueError` unless there is a group, and each weight is at least 1."""
        if not weights or min(weights) < 1:
            raise ValueError(f"Groups of {list(weights)} samples cannot take turns: leave empty ones out.")
        self.groups = len(weights)
        # Of equals the one that was there first; what comes last in a tuple is never compared.
        heap: list[tuple[int, int, int | _Fork]] = [(weight, n, n) for n, weight in enumerate(weights)]
        heapq.heapify(heap)
        for order in range(self.groups, 2 * self.groups - 1):
            light, _, right = heapq.heappop(heap)
            heavy, _, left = heapq.heappop(heap)
            whole = light + heavy
            heapq.heappush(heap, (whole, order, _Fork(left, right, heavy, whole)))
        self._tree = heap[0][2]

    def at(self, step: int) -> tuple[int, int]:
        """The group of a step, and how many steps before it were of that group."""
        node = self._tree
        while isinstance(node, _Fork):
            left = node.lefts(step)
            if node.lefts(step + 1) > left:
                node, step = node.left, left
            else:
                node, step = node.right, step - left
        return node, step

    def before(self, steps: int) -> list[int]:
        """How many of the first `steps` are of each group."""
        found = [0] * self.groups
        open_: list[tuple[int | _Fork, int]] = [(self._tree, steps)]
        while open_:
            node, count = open_.pop()
            if isinstance(node, _Fork):
                left = node.lefts(count)
                open_ += [(node.left, left), (node.right, count - left)]
            else:
                found[node] = count
        return found
