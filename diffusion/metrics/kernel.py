"""Kernel distance, the score to trust on hundreds of images: unlike a Fréchet distance it is unbiased."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion import randomness
from diffusion.metrics.estimate import Estimate

_ROWS = 1024
"""Rows of a kernel matrix that are held at once."""


def kernel_distance(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Unbiased squared maximum mean discrepancy with k(x, y) = (x y / d + 1)^3 (Bińkowski et al., 2018).

    It is Gretton et al., 2012, Equation 3: 0 in expectation for equal distributions, so it can be negative.
    All samples are used at once, which has less variance than the customary mean over small subsets.

    Args:
        resamples: draws of the Bayesian bootstrap (Rubin, 1981) over both sets, for the interval.

    Raises:
        ValueError: a set has fewer than two samples.
    """
    if len(real) < 2 or len(generated) < 2:
        raise ValueError("a kernel distance takes at least two samples of each set.")
    real, generated = real.double(), generated.double()
    draws = randomness.generator(seed, 0, "kernel_distance")
    w = _weights(draws, len(real), resamples).to(real.device)
    v = _weights(draws, len(generated), resamples).to(real.device)

    values = _within(real, w) + _within(generated, v) - 2 * _between(real, generated, w, v)
    value, resampled = values[0], values[1:]
    low, high = resampled.quantile(resampled.new_tensor([0.025, 0.975])).tolist()
    return Estimate(value=value.item(), stderr=resampled.std().item(), low=low, high=high)


def _weights(draws: np.random.Generator, count: int, resamples: int) -> Float64[Tensor, "r count"]:
    """Weights of the samples, summing to 1: all equal in the first row, then flat Dirichlet draws."""
    w = np.concatenate([np.ones((1, count)), draws.standard_exponential((resamples, count))])
    return torch.from_numpy(w / w.sum(axis=1, keepdims=True))


def _kernel(x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"]) -> Float64[Tensor, "a b"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _between(
    x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"], w: Float64[Tensor, "r n"], v: Float64[Tensor, "r m"]
) -> Float64[Tensor, " r"]:
    """Mean of k over pairs (x, y): sum of w_i v_j k(x_i, y_j)."""
    total = w.new_zeros(len(w))
    for rows, weights in zip(x.split(_ROWS), w.split(_ROWS, dim=1), strict=True):
        total += ((weights @ _kernel(rows, y)) * v).sum(1)
    return total


def _within(x: Float64[Tensor, "n d"], w: Float64[Tensor, "r n"]) -> Float64[Tensor, " r"]:
    """Mean of k over pairs of different samples, which is what makes the distance unbiased."""
    own = (x.square().sum(1) / x.shape[1] + 1) ** 3
    squares = w.square()
    return (_between(x, x, w, w) - squares @ own) / (1 - squares.sum(1))
