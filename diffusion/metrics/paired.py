"""Kernel distance of real samples to what was drawn for the very conditions of each.

Where images are drawn for the captions of the real ones, a resample of the conditions takes both along, and
what is hard, rare or alike about a condition cancels. Two models that drew for the same conditions are
compared by the difference of their matrices: its interval is the difference's own.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion import randomness
from diffusion.metrics.estimate import Estimate


def pair_matrix(real: Float[Tensor, "n d"], drawn: Float[Tensor, "n m d"]) -> Float64[Tensor, "n n"]:
    """h(i, j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), y being means over m drawings.

    Its mean over i != j is the squared maximum mean discrepancy without bias (Gretton et al., 2012, Lemma 6),
    also where x_i and y_i are alike because they share a condition: such pairs are on the diagonal alone.
    k(x, y) = (x y / d + 1)^3 (Bińkowski et al., 2018).
    """
    if len(real) != len(drawn) or len(real) < 2:
        raise ValueError(f"{len(real)} real samples and drawings for {len(drawn)}: give two pairs or more.")
    real, flat = real.double(), drawn.double().flatten(0, 1)
    n, m, width = drawn.shape

    def kernel(x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"]) -> Float64[Tensor, "a b"]:
        return (x @ y.T / width + 1) ** 3

    cross = kernel(real, flat).reshape(n, n, m).mean(2)
    # Row by row: all drawings' kernels at once would be m^2 times the result.
    within = torch.stack([kernel(own, flat).reshape(-1, n, m).mean((0, 2)) for own in flat.split(m)])
    return kernel(real, real) + within - cross - cross.T


def pair_estimate(h: Float64[Tensor, "n n"], *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean of a pair matrix (or of the difference of two) off its diagonal.

    Args:
        resamples: draws of the Bayesian bootstrap (Rubin, 1981) over the conditions, for the interval.
    """
    draws = randomness.generator(seed, 0, "pair_estimate")
    weights = np.concatenate([np.ones((1, len(h))), draws.standard_exponential((resamples, len(h)))])
    w = torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).to(h.device)
    squares = w.square()
    values = ((w @ h * w).sum(1) - squares @ h.diagonal()) / (1 - squares.sum(1))
    value, resampled = values[0], values[1:]
    low, high = resampled.quantile(resampled.new_tensor([0.025, 0.975])).tolist()
    return Estimate(value=value.item(), stderr=resampled.std().item(), low=low, high=high)
