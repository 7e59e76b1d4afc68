"""How well a score tells anomalous samples from normal ones."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion import randomness
from diffusion.metrics.estimate import Estimate


def auroc(
    normal: Float[Tensor, " n"], anomalous: Float[Tensor, " m"], *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Area under the receiver operating characteristic: how often an anomalous sample has the higher score of
    a pair, a tie being half of one (Mann and Whitney, 1947; Bamber, 1975). 0.5 is chance.

    Args:
        resamples: draws of the Bayesian bootstrap (Rubin, 1981) over both sets, for the interval.

    Raises:
        ValueError: a set is empty, or a score is no number.
    """
    if not len(normal) or not len(anomalous):
        raise ValueError(f"{len(normal)} normal and {len(anomalous)} anomalous scores: give some of both.")
    ordered = normal.double().cpu().sort().values
    scores = anomalous.double().cpu()
    if ordered.isnan().any() or scores.isnan().any():
        raise ValueError("a score is not a number: it has no rank.")
    draws = randomness.generator(seed, 0, "auroc")
    w, v = (_weights(draws, len(group), resamples) for group in (ordered, scores))
    # Weight of the normal ones below each score, and up to it: a tie counts half of each.
    below = torch.cat([w.new_zeros(len(w), 1), w.cumsum(1)], dim=1)
    ranks = below[:, torch.searchsorted(ordered, scores)]
    ranks = (ranks + below[:, torch.searchsorted(ordered, scores, right=True)]) / 2
    areas = (v * ranks).sum(1)
    value, resampled = areas[0], areas[1:]
    low, high = resampled.quantile(resampled.new_tensor([0.025, 0.975])).tolist()
    return Estimate(value=value.item(), stderr=resampled.std().item(), low=low, high=high)


def _weights(draws: np.random.Generator, count: int, resamples: int) -> Float64[Tensor, "r count"]:
    """Weights summing to 1: all equal in the first row, then flat Dirichlet draws."""
    w = np.concatenate([np.ones((1, count)), draws.standard_exponential((resamples, count))])
    return torch.from_numpy(w / w.sum(axis=1, keepdims=True))
