"""Nearest neighbours among more feature vectors than one task holds, by FAISS.

An inverted file (Jegou, Douze and Schmid, 2011) taken apart: each vector is at home in the partition of its
nearest centroid and visits the next nearest ones, so that pairs across a border are found. One partition, or
a piece of a large one, is one task: its homes make an index, its visitors stream by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_PER_CENTROID = 64
"""Vectors that k-means is shown for each centroid."""
_ROUNDS = 10
BLOCK = 2048
"""Vectors that are searched at once."""


def partitions(count: int, size: int) -> int:
    """How many partitions so many vectors are put into, at `size` each."""
    return max(1, -(-count // size))


def sample_size(parts: int) -> int:
    """Vectors to train so many centroids on."""
    return parts * _PER_CENTROID


def centroids(sample: np.ndarray, count: int, seed: int) -> np.ndarray:
    """float32 [count, width], each of length 1, by seeded k-means of vectors of length 1; fewer if there are
    fewer vectors. Equal samples give equal centroids."""
    faiss = _faiss()
    sample = np.ascontiguousarray(sample, dtype=np.float32)
    if len(sample) <= count:
        return sample
    means = faiss.Kmeans(
        sample.shape[1], count, niter=_ROUNDS, seed=seed, spherical=True, min_points_per_centroid=1
    )
    means.train(sample)
    return means.centroids


def nearest_partitions(vectors: np.ndarray, means: np.ndarray, probes: int) -> np.ndarray:
    """int64 [n, probes]: the partitions of each vector, the nearest first; the first is its home."""
    faiss = _faiss()
    index = faiss.IndexFlatIP(means.shape[1])
    index.add(means)
    found = [np.empty((0, min(probes, len(means))), np.int64)]
    for start in range(0, len(vectors), BLOCK):
        block = np.ascontiguousarray(vectors[start : start + BLOCK], dtype=np.float32)
        found.append(index.search(block, min(probes, len(means)))[1])
    return np.concatenate(found)


class Homes:
    """An index over the vectors that are at home in one partition, or in a piece of it."""

    def __init__(self, width: int, blocks: Iterable[np.ndarray]) -> None:
        """`blocks`: [n, width] each, of length 1 per row; one at a time is held beside the index."""
        self._index = _faiss().IndexFlatIP(width)
        for block in blocks:
            self._index.add(np.ascontiguousarray(block, dtype=np.float32))

    def __len__(self) -> int:
        return self._index.ntotal

    def near(
        self, visitors: np.ndarray, *, cosine: float, count: int | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The homes of at least that cosine to each visitor; at most the `count` nearest, all if None.

        Yields:
            Numbers of visitors, numbers of homes and cosines, block by block; a visitor that is at home here
            is near itself.
        """
        for start in range(0, len(visitors), BLOCK):
            block = np.ascontiguousarray(visitors[start : start + BLOCK], dtype=np.float32)
            if count is None:
                # faiss's own threshold is strict
                ends, cosines, homes = self._index.range_search(block, float(np.nextafter(cosine, -1)))
                who = np.repeat(np.arange(len(block)), np.diff(ends.astype(np.int64)))
            else:
                cosines, homes = self._index.search(block, min(count, len(self)))
                who, column = np.nonzero((cosines >= cosine) & (homes >= 0))
                cosines, homes = cosines[who, column], homes[who, column]
            yield start + who, homes, cosines


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError("Semantic duplicates need FAISS: pip install 'latentmill[dedup]'.") from None
    # sums over threads would differ from machine to machine; tasks are what runs side by side
    faiss.omp_set_num_threads(1)
    return faiss
