"""From pairs of near copies to which image of each cluster is kept.

Representative linkage: images are taken in a fixed order, and each is either near one that was kept before,
and falls for it, or is kept itself. So each that falls was compared with the very one it falls for, and
nothing chains: of a - b - c, where a and c are not near, a and c stay. (In complete linkage all members are
near one another, which would keep more near copies, and costs every pair of a cluster.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

ORDER = ("test", "validation", "train")
"""Held-out images are kept first, so that what leaks falls out of training."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """An image that is in some pair."""

    key: str
    split: str
    digest: str
    area: int = 0
    """px of the original; the larger is kept, in a split."""


@dataclass(frozen=True)
class Pair:
    """Two images, by number, that are near copies."""

    a: int
    b: int
    similarity: float
    """0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Linked:
    """What becomes of an image."""

    twin: int | None
    """The kept image that it falls for; None where it is kept itself."""
    exact: bool
    """Whether the twin has the same bytes."""
    similarity: float
    """To the twin; 0 without one."""
    cluster: int
    """The representative of its cluster, whatever the splits: itself, or one that it is near to."""


def link(members: Sequence[Member], same: Iterable[Sequence[int]], pairs: Iterable[Pair]) -> list[Linked]:
    """Decides for each member.

    An image falls for one of its own split; one of train also for a held-out one. Of several it falls for the
    one with its own bytes, then for the nearest, then for the first in order (split, area, key).

    Args:
        same: groups of members that are alike in all that pairs are made of, so that a pair of one member
            stands for all of its group.
        pairs: in any order, also twice.
    """
    group = list(range(len(members)))
    for numbers in same:
        first = min(numbers)
        for n in numbers:
            group[n] = first
    near: dict[int, dict[int, float]] = {}
    for pair in pairs:
        a, b = group[pair.a], group[pair.b]
        if a != b:
            value = max(pair.similarity, near.get(a, {}).get(b, 0.0))
            near.setdefault(a, {})[b] = value
            near.setdefault(b, {})[a] = value

    def place(n: int) -> tuple[int, int, str]:
        return ORDER.index(members[n].split), -members[n].area, members[n].key

    order = sorted(range(len(members)), key=place)
    rank = {n: position for position, n in enumerate(order)}
    falls = _fallen(
        members, order, rank, group, near, lambda split, other: other == split or split == "train"
    )
    clusters = _fallen(members, order, rank, group, near, lambda split, other: True)
    found = []
    for n in range(len(members)):
        twin, similarity = falls.get(n, (None, 0.0))
        exact = twin is not None and members[twin].digest == members[n].digest
        cluster = clusters[n][0] if n in clusters else n
        found.append(Linked(twin=twin, exact=exact, similarity=similarity, cluster=cluster))
    return found


def _fallen(
    members: Sequence[Member],
    order: Sequence[int],
    rank: dict[int, int],
    group: Sequence[int],
    near: dict[int, dict[int, float]],
    may: Callable[[str, str], bool],
) -> dict[int, tuple[int, float]]:
    """Member -> what it falls for, and how similar that is."""
    kept: dict[int, dict[tuple[str, str], int]] = {}
    fallen: dict[int, tuple[int, float]] = {}
    for n in order:
        split, digest = members[n].split, members[n].digest
        best: tuple[bool, float, int] | None = None
        for other, similarity in ({group[n]: 1.0} | near.get(group[n], {})).items():
            for (of, bytes_), keeper in kept.get(other, {}).items():
                if may(split, of):
                    choice = (bytes_ != digest, -similarity, rank[keeper])
                    best = choice if best is None else min(best, choice)
        if best is None:
            kept.setdefault(group[n], {})[split, digest] = n
        else:
            fallen[n] = order[best[2]], -best[1]
    return fallen


def components(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The smallest number that each of `count` images is joined with, directly or over others.

    For splits and not for dropping: a pair must not be torn apart, whatever it is joined over.
    """
    parents = list(range(count))

    def root(n: int) -> int:
        while parents[n] != n:
            parents[n] = parents[parents[n]]
            n = parents[n]
        return n

    for a, b in pairs:
        a, b = root(a), root(b)
        parents[max(a, b)] = min(a, b)
    return [root(n) for n in range(count)]
