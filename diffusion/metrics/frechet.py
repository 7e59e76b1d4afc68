"""Fréchet distance between Gaussians fitted to two sets of features (Heusel et al., 2017).

It is biased upwards, the more the fewer the samples: compare only distances that were taken at equal counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion.metrics.estimate import Estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureStatistics:
    """Sums over features in fp64, from which mean and covariance follow; adding two joins their samples."""

    count: int
    first: Float64[Tensor, " d"]
    """Sum of x."""
    second: Float64[Tensor, "d d"]
    """Sum of x x^T."""

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> FeatureStatistics:
        x = features.double()
        return cls(count=len(x), first=x.sum(0), second=x.T @ x)

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        return FeatureStatistics(
            count=self.count + other.count,
            first=self.first + other.first,
            second=self.second + other.second,
        )

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        return self.first / self.count

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """Unbiased; at least two samples."""
        centred = self.second - torch.outer(self.first, self.first) / self.count
        return centred / (self.count - 1)


@dataclass(frozen=True, eq=False)
class _Gaussian:
    """A covariance by a factor: factor^T factor."""

    mean: Float64[Tensor, " d"]
    factor: Float64[Tensor, "r d"]

    @classmethod
    def of_statistics(cls, statistics: FeatureStatistics) -> _Gaussian:
        eigenvalues, vectors = torch.linalg.eigh(statistics.covariance)
        kept = eigenvalues > eigenvalues[-1] * len(eigenvalues) * torch.finfo(torch.float64).eps
        return cls(statistics.mean, (vectors * eigenvalues.clamp(min=0).sqrt()).T[kept])

    @classmethod
    def of_features(cls, features: Float64[Tensor, "n d"]) -> _Gaussian:
        mean = features.mean(0)
        return cls(mean, (features - mean) / math.sqrt(len(features) - 1))

    def distance(self, other: _Gaussian) -> float:
        """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson and Landau, 1982).

        With A = F^T F and B = G^T G, the eigenvalues of (A B)^(1/2) are the singular values of F G^T: nothing
        is squared that a square root must undo, and few samples in one set make it cheap.
        """
        f, g = self.factor, other.factor
        if min(len(f), len(g)) > f.shape[1]:  # no factor needs more rows than columns
            f, g = (torch.linalg.qr(factor, mode="r").R for factor in (f, g))
        root = torch.linalg.svdvals(f @ g.T).sum()
        between = (self.mean - other.mean).square().sum()
        return float(between + f.square().sum() + g.square().sum() - 2 * root)


def frechet_distance(real: FeatureStatistics, generated: FeatureStatistics) -> float:
    """From statistics that were summed anywhere, in any number of parts.

    Raises:
        ValueError: a set has fewer than two samples.
    """
    _check(real.count, generated.count)
    return _Gaussian.of_statistics(real).distance(_Gaussian.of_statistics(generated))


def frechet_estimate(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], *, groups: int = 10
) -> Estimate:
    """The same distance from the features themselves, with an interval.

    Its standard error is the delete-a-group jackknife's, over both sets: the repeated samples of a bootstrap
    would add to the distance's bias.

    Args:
        groups: parts of each set, each left out once; samples are dealt to them in turn.

    Raises:
        ValueError: a set has fewer than two samples beside its largest group.
    """
    _check(len(real) - -(-len(real) // groups), len(generated) - -(-len(generated) // groups))
    real, generated = real.double(), generated.double()
    a, b = _Gaussian.of_features(real), _Gaussian.of_features(generated)

    value = a.distance(b)
    variance = _jackknife(real, b.distance, groups) + _jackknife(generated, a.distance, groups)
    stderr = math.sqrt(variance)
    return Estimate(value=value, stderr=stderr, low=value - 1.96 * stderr, high=value + 1.96 * stderr)


def _jackknife(
    features: Float64[Tensor, "n d"], statistic: Callable[[_Gaussian], float], groups: int
) -> float:
    """(g - 1) / g times the sum of squared deviations of the values with one group left out."""
    group = torch.arange(len(features), device=features.device) % groups
    values = torch.tensor(
        [statistic(_Gaussian.of_features(features[group != left_out])) for left_out in range(groups)]
    )
    return float((groups - 1) * values.var(correction=0))


def _check(*counts: int) -> None:
    if min(counts) < 2:
        raise ValueError("a Fréchet distance takes at least two samples of each set; give it more images.")
