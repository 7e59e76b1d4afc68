"""Distributions whose answers are known in closed form: the truth that the core is tested against.

Mixtures of Gaussians with diagonal covariances (their components are classes), and one Gaussian with any
covariance, with linear measurements. Both are denoisers, on any schedule.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.noise import RectifiedFlow, Schedule, Time, VarianceExploding, VariancePreserving


class Trigonometric(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): a curved path, for formulas that must hold on any."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)

    def time(self, u: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan2(u, 1 - u)


def named(kind: object) -> str:
    """A parameter's name in a test's, the same in every process: without the address that `repr` has."""
    return re.sub(r"^<(?:\w+\.)*(\w+) object at .*", r"\1", repr(kind))


SCHEDULES: dict[str, Schedule] = {
    "rectified flow": RectifiedFlow(),
    "trigonometric": Trigonometric(),
    "VP linear": VariancePreserving.linear(),
    "VP scaled linear": VariancePreserving.scaled_linear(),
    "VP cosine": VariancePreserving.cosine(),
    "VP zero terminal": VariancePreserving.scaled_linear().zero_terminal(),
    "VE": VarianceExploding(),
}


@dataclass(frozen=True, eq=False)
class ExactMixture:
    """E[x | x_t] for x ~ sum_k weight_k N(mean_k, diag std_k^2); class k is component k, `classes` is all."""

    mean: Tensor
    """[k c h w]"""
    std: Tensor
    """[k c h w]"""
    weight: Tensor
    """[k]"""
    schedule: Schedule = field(default_factory=RectifiedFlow)

    def conditioning(self, label: int, batch: int) -> Conditioning:
        return Conditioning(label=torch.full((batch,), label), classes=len(self.weight))

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weight, count, replacement=True, generator=generator)
        z = torch.randn(count, *self.mean.shape[1:], generator=generator, dtype=self.mean.dtype)
        return self.mean[component] + self.std[component] * z

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [d] and covariance [d d] of the whole mixture."""
        mean, std = self.mean.flatten(1), self.std.flatten(1)
        centre = self.weight @ mean
        spread = torch.diag_embed(std**2) + (mean - centre)[:, :, None] * (mean - centre)[:, None]
        return centre, torch.einsum("k,kij->ij", self.weight, spread)

    def log_density(self, x_t: Tensor, t: Time, conditioning: Conditioning) -> Tensor:
        """log p_t(x_t | class), [b]."""
        joint = self._joint(x_t, t, conditioning)
        known = joint.new_zeros(len(joint)) if conditioning.label is None else self._log_prior(conditioning)
        return joint.logsumexp(1) - known - x_t[0].numel() / 2 * math.log(2 * math.pi)

    def score(self, x_t: Tensor, t: Time, conditioning: Conditioning) -> Tensor:
        """Its gradient, (alpha E[x | x_t] - x_t) / sigma^2 (Tweedie)."""
        alpha, sigma = self.schedule.spread(t, x_t)
        return (alpha * self(x_t, t, conditioning) - x_t) / sigma**2

    def __call__(self, x_t: Tensor, t: Time, conditioning: Conditioning) -> Tensor:
        alpha, sigma = self._coefficients(x_t, t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        posterior = self.mean + gain * (x_t[:, None] - alpha * self.mean)
        responsibility = self._joint(x_t, t, conditioning).softmax(1)
        return (responsibility[..., None, None, None] * posterior).sum(1)

    def _coefficients(self, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.spread(t, x_t[:, None])
        return torch.as_tensor(alpha, dtype=x_t.dtype), torch.as_tensor(sigma, dtype=x_t.dtype)

    def _joint(self, x_t: Tensor, t: Time, conditioning: Conditioning) -> Tensor:
        """log p_t(x_t, k | class), [b k], without the constant."""
        alpha, sigma = self._coefficients(x_t, t)
        variance = alpha**2 * self.std**2 + sigma**2
        square = (x_t[:, None] - alpha * self.mean) ** 2 / variance + variance.log()
        joint = self.weight.log() - square.flatten(2).sum(2) / 2
        return (
            joint.where(self._possible(conditioning), -torch.inf) if conditioning.label is not None else joint
        )

    def _possible(self, conditioning: Conditioning) -> Tensor:
        assert conditioning.label is not None
        label = conditioning.label[:, None]
        return (torch.arange(len(self.weight)) == label) | (label == len(self.weight))

    def _log_prior(self, conditioning: Conditioning) -> Tensor:
        return self.weight.log().where(self._possible(conditioning), -torch.inf).logsumexp(1)


@dataclass(frozen=True, eq=False)
class ExactGaussian:
    """E[x | x_t] for x ~ N(mean, covariance) on latents of any shape, and what is known once A x is."""

    mean: Tensor
    """[c h w]"""
    covariance: Tensor
    """[d d], d = c h w."""
    schedule: Schedule = field(default_factory=RectifiedFlow)

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, len(self.covariance), generator=generator, dtype=self.mean.dtype)
        return self.mean + (z @ torch.linalg.cholesky(self.covariance).T).reshape(-1, *self.mean.shape)

    def __call__(self, x_t: Tensor, t: Time, conditioning: Conditioning) -> Tensor:
        value, vector = torch.linalg.eigh(self.covariance)
        alpha, sigma = (torch.as_tensor(c).reshape(-1, 1) for c in self.schedule.spread(t, x_t))
        offset = (x_t.flatten(1) - alpha * self.mean.flatten()) @ vector
        gain = alpha * value / (alpha**2 * value + sigma**2)
        return self.mean + ((gain * offset) @ vector.T).reshape(x_t.shape)

    def flow(self, x_t: Tensor, t: float, s: float) -> Tensor:
        """Where the probability flow ODE carries x_t: along each eigenvector by the ratio of deviations."""
        value, vector = torch.linalg.eigh(self.covariance)
        (alpha, sigma), (a, b) = self.schedule.at(t), self.schedule.at(s)
        ratio = ((a * a * value + b * b) / (alpha * alpha * value + sigma * sigma)).sqrt()
        offset = (x_t.flatten(1) - alpha * self.mean.flatten()) @ vector
        return a * self.mean + ((ratio * offset) @ vector.T).reshape(x_t.shape)

    def log_density(self, x_t: Tensor, t: float) -> Tensor:
        """log p_t(x_t), [b]."""
        alpha, sigma = self.schedule.at(t)
        covariance = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.covariance), dtype=x_t.dtype)
        normal = torch.distributions.MultivariateNormal(alpha * self.mean.flatten(), covariance)
        return normal.log_prob(x_t.flatten(1))

    def posterior(self, matrix: Tensor, measured: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """Mean [d] and covariance [d d] of x given matrix x + noise n = measured; matrix is [m d]."""
        seen = matrix @ self.covariance @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=matrix.dtype)
        gain = torch.linalg.solve(seen, matrix @ self.covariance).T
        mean = self.mean.flatten()
        return mean + gain @ (measured - matrix @ mean), self.covariance - gain @ matrix @ self.covariance


def gaussian(mean: float, std: Tensor, schedule: Schedule | None = None) -> ExactMixture:
    """x ~ N(mean, diag std^2), std: [c h w]."""
    return ExactMixture(
        mean=torch.full_like(std, mean)[None],
        std=std[None],
        weight=std.new_ones(1),
        schedule=schedule or RectifiedFlow(),
    )


def correlated(schedule: Schedule | None = None) -> ExactGaussian:
    """A Gaussian on [1 2 3] latents with a covariance of unequal, rotated axes, in fp64."""
    generator = torch.Generator().manual_seed(1)
    axes, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    spread = torch.tensor([1.5, 1.0, 0.8, 0.5, 0.3, 0.2], dtype=torch.float64)
    mean = torch.tensor([0.5, -1.0, 0.0, 1.0, 0.3, -0.2], dtype=torch.float64).reshape(1, 2, 3)
    return ExactGaussian(mean, axes @ torch.diag(spread**2) @ axes.T, schedule or RectifiedFlow())


def two_classes(schedule: Schedule | None = None) -> ExactMixture:
    """Two overlapping components of unequal weight and spread on [2 1 1] latents, in fp64."""
    return ExactMixture(
        mean=torch.tensor([[-1.0, 0.5], [1.5, 0.0]], dtype=torch.float64).reshape(2, 2, 1, 1),
        std=torch.tensor([[0.4, 0.7], [0.9, 0.3]], dtype=torch.float64).reshape(2, 2, 1, 1),
        weight=torch.tensor([0.3, 0.7], dtype=torch.float64),
        schedule=schedule or RectifiedFlow(),
    )
