"""Whether a sample is like those that a denoiser was trained on: scores that grow with strangeness.

Three looks at a sample, each on any denoiser: how badly it is denoised at several levels of noise, how far it
is moved when it is taken for noisy, and how unlikely it is (`log_likelihood`, negated). The last one alone is
no judge of images: it rates plain ones above all that it knows (Nalisnick et al., 2019). A `Calibration`
makes one score of many numbers. As a baseline there is the distance to the nearest normal sample in feature
space, `metrics.neighbours.nearest`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.editing.denoising import denoise
from diffusion.samplers.sampler import Draws

Fitted = TypeVar("Fitted", bound="Calibration")


@torch.no_grad()
def denoising_errors(
    denoiser: AnyDenoiser,
    x: Float[Tensor, "b c h w"],
    levels: Sequence[float],
    conditioning: Conditioning,
    draws: Draws,
) -> Float[Tensor, "b k h w"]:
    """Squared error of E[x | x + level n] at each level, a mean over channels: maps, whose means over h and w
    are a sample's errors (after Graham et al., 2023, "DDM-OOD", who reconstruct in many steps).

    One call a level; `draws(n)` is the noise of the n-th. A level is sigma / alpha, in whitened latents:
    small ones see texture, large ones content.
    """
    errors = []
    for n, level in enumerate(levels):
        clean = denoise(denoiser, x + level * draws(n).to(x.dtype), level, conditioning)
        errors.append((clean - x).square().mean(1))
    return torch.stack(errors, dim=1)


@torch.no_grad()
def score_norms(
    denoiser: AnyDenoiser, x: Float[Tensor, "b c h w"], levels: Sequence[float], conditioning: Conditioning
) -> Float[Tensor, "b k"]:
    """||level grad log p_level(x)|| = ||E[x | x + level n] - x|| / level of the sample as it is
    (Mahmood et al., 2021, "Multiscale score matching analysis"; by Tweedie's formula). One call a level."""
    return torch.stack(
        [(denoise(denoiser, x, level, conditioning) - x).flatten(1).norm(dim=1) / level for level in levels],
        dim=1,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration(ABC):
    """What is normal, from samples that are normal and took no part in training: of k numbers a sample, one
    score. Numbers are compared in double precision, on the CPU."""

    mean: Float64[Tensor, " k"]
    std: Float64[Tensor, " k"]
    normals: Float64[Tensor, " n"]
    """Scores of the samples that it was fitted on, ascending."""

    @classmethod
    def fit(cls: type[Fitted], values: Float[Tensor, "n k"]) -> Fitted:
        """`ValueError` for fewer than two samples, for numbers that do not vary and for such as are none."""
        values = values.detach().double().cpu()
        if len(values) < 2 or not bool(values.isfinite().all()):
            raise ValueError("a calibration takes two normal samples or more, with finite numbers.")
        std = values.std(0)
        if not bool((std > 0).all()):
            raise ValueError("a number is the same for all normal samples: it tells nothing.")
        found = {"mean": values.mean(0), "std": std}
        z = (values - found["mean"]) / std
        found |= cls.fitted(z)
        scores = cls(**found, normals=z.new_zeros(0)).score(values)
        return cls(**found, normals=scores.sort().values)

    def score(self, values: Float[Tensor, "b k"]) -> Float64[Tensor, " b"]:
        return self.combined((values.detach().double().cpu() - self.mean) / self.std)

    def percentile(self, scores: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Share of the normal samples that score less, in percent; an equal one counts half."""
        below = torch.searchsorted(self.normals, scores)
        upto = torch.searchsorted(self.normals, scores, right=True)
        return (below + upto).double() * (50 / len(self.normals))

    @classmethod
    def fitted(cls, z: Float64[Tensor, "n k"]) -> dict[str, Any]:
        """Further fields of a subclass, from the normal samples' deviations."""
        return {}

    @abstractmethod
    def combined(self, z: Float64[Tensor, "b k"]) -> Float64[Tensor, " b"]:
        """One score, of deviations in units of the normal samples'."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanDeviation(Calibration):
    """The mean of the deviations: for numbers that are all larger where something is strange, as errors are
    (Graham et al., 2023), and for a single number."""

    def combined(self, z: Float64[Tensor, "b k"]) -> Float64[Tensor, " b"]:
        return z.mean(1)

    def heat(self, maps: Float[Tensor, "b k h w"]) -> Float64[Tensor, "b h w"]:
        """Where the score comes from: maps of `denoising_errors`, weighed as their means are; its mean is
        their `score`."""
        mean, std = self.mean[:, None, None], self.std[:, None, None]
        return ((maps.detach().double().cpu() - mean) / std).mean(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianFit(Calibration):
    """z^T R^-1 z, the squared Mahalanobis distance: for numbers that are strange where they are too small as
    well, or fit badly together, as score norms are (Mahmood et al., 2021, fit a mixture)."""

    precision: Float64[Tensor, "k k"]
    """R^-1 of the correlations, shrunk by as much as they are uncertain."""

    @classmethod
    def fitted(cls, z: Float64[Tensor, "n k"]) -> dict[str, Any]:
        return {"precision": torch.linalg.inv(shrunk_correlation(z))}

    def combined(self, z: Float64[Tensor, "b k"]) -> Float64[Tensor, " b"]:
        return ((z @ self.precision) * z).sum(1)


def shrunk_correlation(z: Float64[Tensor, "n k"]) -> Float64[Tensor, "k k"]:
    """(1 - s) r off the diagonal, for standardised z: s = sum Var(r_ij) / sum r_ij^2, at most 1, has
    the least expected squared error (Schäfer and Strimmer, 2005). It can be inverted also where n < k."""
    n, k = z.shape
    products = z[:, :, None] * z[:, None, :]
    correlation = products.sum(0) / (n - 1)
    variance = (products - products.mean(0)).square().sum(0) * (n / (n - 1) ** 3)
    off = ~torch.eye(k, dtype=torch.bool)
    total = correlation[off].square().sum()
    shrinkage = (variance[off].sum() / total).clamp(max=1) if total > 0 else torch.ones(())
    return torch.where(off, (1 - shrinkage) * correlation, 1.0)
