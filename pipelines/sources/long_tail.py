"""A long tail cut from a training split that has plenty of every class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LongTail:
    """Training images that are kept of each class: `head` of the first, falling by a constant factor from
    class to class to `head / ratio` of the last (Cao et al., 2019, section 4.1, the exponential profile).

    Classes stand in the dataset's order of class names; a class that has fewer images keeps them all. The
    test split stays whole.
    """

    head: int = 500
    """Training images of the first class."""
    ratio: float = 100.0
    """How many times fewer the last class has."""
    validation: int = 0
    """Images of each class that go to the validation split instead of being left out, as many of every class
    (Liu et al., 2019, have 20): for choosing on, never for training."""

    def __post_init__(self) -> None:
        if self.head < 1 or self.validation < 0:
            raise ValueError(
                f"long_tail: head is {self.head} and validation {self.validation}; they must be at least 1 "
                "and 0."
            )
        if not 1 <= self.ratio < float("inf"):
            raise ValueError(f"long_tail.ratio is {self.ratio}; it must be 1 or more.")

    def counts(self, classes: int) -> list[int]:
        """Training images of each class, at least 1: n_i = head * ratio^(-i / (classes - 1))."""
        last = max(classes - 1, 1)
        return [max(1, round(self.head * self.ratio ** (-n / last))) for n in range(classes)]


def thinned(
    tail: LongTail,
    keys: Sequence[str],
    labels: Sequence[int | None],
    splits: Sequence[str],
    clusters: Sequence[int],
    *,
    usable: Sequence[bool],
    classes: int,
) -> list[str]:
    """The split of each image, "" for those that are left out.

    Which ones are kept depends on their keys alone, so that a larger count adds to a smaller. What is
    unusable anyway or has no class stays where it is; an image with a near-duplicate among the kept training
    images never goes to validation.
    """
    result = list(splits)
    of_class: dict[int, list[tuple[bytes, int]]] = {n: [] for n in range(classes)}
    for n, (key, label, split) in enumerate(zip(keys, labels, splits, strict=True)):
        if split == "train" and label is not None and usable[n]:
            of_class[label].append((hashlib.sha256(f"long tail/{key}".encode()).digest(), n))
    left: dict[int, list[int]] = {}
    for label, count in enumerate(tail.counts(classes)):
        order = [n for _, n in sorted(of_class[label])]
        left[label] = order[count:]
        for n in left[label]:
            result[n] = ""
    trained = {cluster for cluster, split in zip(clusters, result, strict=True) if split == "train"}
    # From the other end of the order, so that a larger head takes nothing from validation until they meet.
    for order in left.values():
        chosen = [n for n in reversed(order) if clusters[n] not in trained][: tail.validation]
        for n in chosen:
            result[n] = "validation"
    return result
