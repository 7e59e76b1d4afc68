"""Denoisers whose answers are known in closed form, to test samplers and guidance against the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.noise import RectifiedFlow, Schedule


class Trigonometric(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): a curved path, for formulas that must hold on any."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)

    def derivative(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self(t)
        return -math.pi / 2 * sigma, math.pi / 2 * alpha


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

    def log_density(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """log p_t(x_t | class), [b], up to a constant."""
        return self._joint(x_t, t, conditioning).logsumexp(1)

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in self.schedule(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        posterior = self.mean + gain * (x_t[:, None] - alpha * self.mean)
        responsibility = self._joint(x_t, t, conditioning).softmax(1)
        return (responsibility[..., None, None, None] * posterior).sum(1)

    def _joint(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """log p_t(x_t, k | class), [b k]."""
        alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in self.schedule(t))
        variance = alpha**2 * self.std**2 + sigma**2
        square = (x_t[:, None] - alpha * self.mean) ** 2 / variance + variance.log()
        joint = self.weight.log() - square.flatten(2).sum(2) / 2
        label = conditioning.label
        if label is None:
            return joint
        component = torch.arange(len(self.weight))
        possible = (component == label[:, None]) | (label[:, None] == len(self.weight))
        return joint.where(possible, -torch.inf)


def gaussian(mean: float, std: Tensor, schedule: Schedule | None = None) -> ExactMixture:
    """x ~ N(mean, diag std^2), std: [c h w]."""
    return ExactMixture(
        mean=torch.full_like(std, mean)[None],
        std=std[None],
        weight=std.new_ones(1),
        schedule=schedule or RectifiedFlow(),
    )


def two_classes() -> ExactMixture:
    """Two overlapping components of unequal weight and spread on [2 1 1] latents, in fp64."""
    return ExactMixture(
        mean=torch.tensor([[-1.0, 0.5], [1.5, 0.0]], dtype=torch.float64).reshape(2, 2, 1, 1),
        std=torch.tensor([[0.4, 0.7], [0.9, 0.3]], dtype=torch.float64).reshape(2, 2, 1, 1),
        weight=torch.tensor([0.3, 0.7], dtype=torch.float64),
    )
