"""Precision (are generated images plausible?) and recall (is everything real covered?)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion.metrics.neighbours import blocks, radii


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., 2019, Equations 1 and 2).

    A set's manifold is the union of balls around its samples that reach to their k-th nearest other one.
    Precision is the share of generated samples on the real manifold, recall the share of real ones on the
    generated manifold. Both depend on the counts: compare equal ones.

    Raises:
        ValueError: a set has not more than `k` samples.
    """
    return PrecisionRecall(
        precision=_share_inside(generated, real, radii(real, k)),
        recall=_share_inside(real, generated, radii(generated, k)),
    )


def _share_inside(
    query: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], radius: Float64[Tensor, " m"]
) -> float:
    inside = [(distances <= radius).any(dim=1) for _, distances in blocks(query, centres)]
    return float(torch.cat(inside).double().mean())
