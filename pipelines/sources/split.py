"""Train, validation and test: by cluster of near-duplicates, before any shard is made."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.duplicates.methods import Semantic
from pipelines.stage import added

ORDER = ("train", "validation", "test")
"""Splits in the order of their shards' names."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shares of the clusters of near-duplicates. A split that the source states is kept."""

    validation: float = 0.05
    """Share held out for choosing and for loss curves."""
    test: float = 0.05
    """Share held out for the final scores."""
    distance: int | None = 4
    """Bits of 64 in which the perceptual hashes of near-duplicates differ at most (0 to 7); None: only equal
    files count, and no picture is decoded while planning."""

    near: Semantic | None = added(None)
    """Copies are found by a network's features, each pair verified, in place of perceptual hashes: crops and
    recoloured ones too, at some 20 images/s a core."""

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ValueError(
                f"split: validation {self.validation:g} and test {self.test:g} must be 0 or more,"
                " and below 1 together."
            )
        if self.distance is not None and not 0 <= self.distance <= 7:
            raise ValueError(f"split.distance is {self.distance}; it must be 0 to 7, or null.")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The split of each input, and what it could not keep apart."""

    splits: list[str]
    clusters: int
    """Clusters of two images or more."""
    clustered: int
    """Images in them."""
    leaks: int
    """Held-out images with a near-duplicate in train: only where the source's own split has them."""
    exact_leaks: int
    """Of these, those whose very bytes are in train."""


def assign(
    keys: Sequence[str],
    digests: Sequence[str],
    stated: Sequence[str | None],
    clusters: Sequence[int],
    *,
    split: Split,
    seed: int,
) -> Assignment:
    """Each cluster goes where the hash of its smallest key falls.

    Where a member's split is stated it stays, and the others of its cluster follow the first such one. Adding
    images leaves a cluster where it is, unless one of them joins it with a smaller key.
    """
    sizes = Counter(clusters)
    groups: dict[int, list[int]] = {}
    splits = [""] * len(keys)
    for n, cluster in enumerate(clusters):
        if sizes[cluster] > 1:
            groups.setdefault(cluster, []).append(n)
        else:
            splits[n] = stated[n] or _draw(keys[n], split, seed)
    for members in groups.values():
        members.sort(key=lambda n: keys[n])
        place = next((s for n in members if (s := stated[n])), None) or _draw(keys[members[0]], split, seed)
        for n in members:
            splits[n] = stated[n] or place
    near, exact = leaks(digests, splits, clusters)
    return Assignment(
        splits=splits,
        clusters=len(groups),
        clustered=sum(map(len, groups.values())),
        leaks=near,
        exact_leaks=exact,
    )


def leaks(digests: Sequence[str], splits: Sequence[str], clusters: Sequence[int]) -> tuple[int, int]:
    """Held-out images with a near-duplicate in train, and those of them whose very bytes are there."""
    trained = {cluster for cluster, split in zip(clusters, splits, strict=True) if split == "train"}
    files = {digest for digest, split in zip(digests, splits, strict=True) if digest and split == "train"}
    held_out = [
        digest
        for digest, split, cluster in zip(digests, splits, clusters, strict=True)
        if split != "train" and cluster in trained
    ]
    return len(held_out), sum(digest in files for digest in held_out)


def shard_names(keys: Sequence[str], splits: Sequence[str], samples_per_shard: int) -> list[str]:
    """The shard of each key: its hash range within its split, of the smallest power of two of shards.

    The name's first digit is the split's, so that one split's growth renames no shard of another.
    """
    shards, step = _numbers([sum(s == split for s in splits) for split in ORDER], samples_per_shard)
    names = []
    for key, split in zip(keys, splits, strict=True):
        code = ORDER.index(split)
        names.append(f"{code * step + ((_unit(key) * shards[code]) >> 64):05d}")
    return names


def shards_of(
    places: np.ndarray, codes: np.ndarray, samples_per_shard: int
) -> Iterator[tuple[str, str, int, int, int]]:
    """(name, split, count, first place, last place + 1) of each shard that holds anything, as `shard_names`.

    Args:
        places: of the keys among all keys, uint64.
        codes: of the splits, by their place in `ORDER`; below 0 for what is in none.
    """
    counts = [int(np.count_nonzero(codes == code)) for code in range(len(ORDER))]
    shards, step = _numbers(counts, samples_per_shard)
    for code, split in enumerate(ORDER):
        bits = shards[code].bit_length() - 1
        mine = places[codes == code]
        numbers = mine >> np.uint64(64 - bits) if bits else np.zeros(len(mine), dtype=np.uint64)
        width = (1 << 64) >> bits
        for number, count in enumerate(np.bincount(numbers.astype(np.int64), minlength=0).tolist()):
            if count:
                yield f"{code * step + number:05d}", split, count, number * width, (number + 1) * width


def _numbers(counts: Sequence[int], samples_per_shard: int) -> tuple[list[int], int]:
    """Shards of each split, and the distance between two splits' first names."""
    shards = [1 << max(0, -(-n // samples_per_shard) - 1).bit_length() for n in counts]
    return shards, max(10_000, 10 ** len(str(max(shards) - 1)))


def _draw(key: str, split: Split, seed: int) -> str:
    place = _unit(f"{seed}:{key}") / 2**64
    if place < split.test:
        return "test"
    return "validation" if place < split.test + split.validation else "train"


def _unit(text: str) -> int:
    """64 bits of hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
