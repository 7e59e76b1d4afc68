"""The measured order of a sampler's error."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffusion.conditioning import Conditioning
from diffusion.samplers.sampler import Sampler
from tests.diffusion.exact import gaussian


def order(sampler: Callable[..., Sampler]) -> float:
    """Slope of log error over log step size, on a Gaussian whose ODE carries z to mean + std z exactly."""
    std = torch.tensor([0.2, 0.5, 1.0, 1.6], dtype=torch.float64).reshape(1, 2, 2)
    noise = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = (32, 64, 128, 256)
    errors = [
        (sampler(steps=n)(gaussian(2.0, std), noise, Conditioning()) - (2.0 + std * noise))
        .square()
        .mean()
        .sqrt()
        for n in steps
    ]
    x, y = -torch.tensor(steps, dtype=torch.float64).log(), torch.stack(errors).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
