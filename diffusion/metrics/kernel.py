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

    return _estimate(_within(real, w) + _within(generated, v) - 2 * _between(real, generated, w, v))


def kernel_difference(
    real: Float[Tensor, "n d"],
    a: Float[Tensor, "m d"],
    b: Float[Tensor, "m d"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`kernel_distance` of `a` to the real samples, less that of `b`, where a[i] and b[i] belong together.

    They were drawn for the same condition from the same noise. A resample weighs both alike, and the same
    real samples for both, so that what is hard for both cancels: the interval is that of the difference, far
    narrower than two intervals would make one believe.

    Raises:
        ValueError: a set has fewer than two samples, or the two are not of one length.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} samples are no pairs.")
    if len(real) < 2 or len(a) < 2:
        raise ValueError("a kernel distance takes at least two samples of each set.")
    real, a, b = real.double(), a.double(), b.double()
    draws = randomness.generator(seed, 0, "kernel_distance")
    w = _weights(draws, len(real), resamples).to(real.device)
    v = _weights(draws, len(a), resamples).to(real.device)

    of_a = _within(a, v) - 2 * _between(real, a, w, v)
    of_b = _within(b, v) - 2 * _between(real, b, w, v)
    return _estimate(of_a - of_b)


def _estimate(values: Float64[Tensor, " r"]) -> Estimate:
    """Of the value, which comes first, and its resamples."""
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
