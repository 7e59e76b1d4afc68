"""Nearest neighbours in feature space: which training image is closest to a generated one, and how close."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

_ROWS = 256
"""Queries whose distances are held at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """Of each query."""

    distance: Float64[Tensor, " n"]
    """Euclidean."""
    index: Int64[Tensor, " n"]
    """Into the reference; the first of equally near ones."""


def nearest(query: Float[Tensor, "n d"], reference: Float[Tensor, "m d"]) -> Neighbours:
    """The nearest reference of each query. For cosine distances give it features of unit length."""
    found = [distances.min(dim=1) for _, distances in blocks(query, reference)]
    return Neighbours(
        distance=torch.cat([f.values for f in found]), index=torch.cat([f.indices for f in found])
    )


def radii(features: Float[Tensor, "n d"], k: int) -> Float64[Tensor, " n"]:
    """Distance of each sample to its k-th nearest other one.

    Raises:
        ValueError: there are not more than `k` samples.
    """
    if len(features) <= k:
        raise ValueError(f"the distance to neighbour {k} takes more than {k} samples, not {len(features)}.")
    found = []
    for start, distances in blocks(features, features):
        rows = torch.arange(len(distances), device=distances.device)
        distances[rows, start + rows] = torch.inf
        found.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(found)


def blocks(
    query: Float[Tensor, "n d"], reference: Float[Tensor, "m d"]
) -> Iterator[tuple[int, Float64[Tensor, "rows m"]]]:
    """(first query, distances) of some queries at a time."""
    reference = reference.double()
    for start in range(0, len(query), _ROWS):
        rows = query[start : start + _ROWS].double()
        # Differences, not |x|^2 - 2 x y + |y|^2: a copy of a training image must come out at exactly 0.
        yield start, torch.cdist(rows, reference, compute_mode="donot_use_mm_for_euclid_dist")
