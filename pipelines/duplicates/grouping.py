"""Clusters that no split may cut: for whoever makes train, validation and test."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.duplicates.methods import Semantic

if TYPE_CHECKING:
    import numpy as np

    from pipelines.duplicates.perceptual import Look

_PART = 10_000
"""Images whose features and thumbnails are written at once."""


def groups(
    digests: Sequence[str],
    looks: Sequence[Look | None],
    distance: int,
    *,
    near: Semantic | None = None,
    features: np.ndarray | None = None,
    thumbnails: np.ndarray | None = None,
) -> list[int]:
    """Cluster of each image, as the smallest number in it.

    Without `near` as `clusters(digests, looks, distance)` has it. With it the hashes do not count: joined are
    equal digests and verified pairs, also over others. That chains, and must: a pair that is cut leaks. It
    chains little, as only verified pairs do.

    Args:
        digests: of the bytes; "" is equal to none.
        looks: perceptual hashes.
        distance: bits; -1 for equal bytes only.
        near: how pairs are found by features.
        features: fp16 [n, width], each row of length 1, or zeros where there is none; see `Features`.
        thumbnails: uint8 [n, 2, 64, 64]; see `look_features`. Both may be memory maps: they are read in
            pieces, and no more than `near.partition` features are held.
    """
    if near is None:
        from pipelines.duplicates.perceptual import clusters

        return clusters(digests, looks, distance)
    from cluster.storage import Storage
    from pipelines.duplicates import partitions
    from pipelines.duplicates.linkage import components

    if features is None or (thumbnails is None and near.verify is not None):
        raise ValueError("Semantic groups need features, and thumbnails to verify by.")
    import numpy as np

    firsts: dict[str, int] = {}
    ties = [(firsts.setdefault(digest, n), n) for n, digest in enumerate(digests) if digest]
    copies = {n for first, n in ties if first != n}
    starts = range(0, len(digests), _PART)
    parts = [f"{start:09d}" for start in starts]
    with tempfile.TemporaryDirectory(prefix="latentmill-") as folder:
        work = Storage.at(Path(folder))
        for part, start in zip(parts, starts, strict=True):
            piece = np.asarray(features[start : start + _PART])
            there = np.flatnonzero(np.any(piece != 0, axis=1)).tolist()
            partitions.write_features(work, part, there, piece[there])
            if thumbnails is not None:
                partitions.write_thumbnails(work, part, np.asarray(thumbnails[start : start + _PART]))
        skip: dict[int, list[int]] = {}
        for n in sorted(copies):
            skip.setdefault(n // _PART, []).append(n % _PART)
        pairs = partitions.find_semantic(_here, work, parts, near, skip)
    places = (pairs["part"].astype(np.int64) * _PART + pairs["row"]).tolist()
    return components(len(digests), itertools.chain(ties, (tuple(place) for place in places)))


def _here(factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
    call = factory()
    return map(call, items)
