"""How fast errors fall: of endpoints in the median, as the flow of a mixture is not continuous."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.noise import RectifiedFlow, VarianceExploding
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.dpm import DPM
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from diffusion.samplers.runge_kutta import RungeKutta
from diffusion.samplers.sampler import Sampler
from diffusion.samplers.spacing import Even, Karras
from diffusion.samplers.unipc import UniPC
from tests.diffusion.exact import correlated, two_classes

NOTHING = Conditioning()
KARRAS = Karras()
ORDERS = [
    (Euler, 1, 0.95),
    (DDIM, 1, 0.95),
    (Heun, 2, 1.8),
    (DPM, 1, 1.8),
    (UniPC, 1, 1.8),
    (functools.partial(UniPC, order=1), 1, 1.8),
    (functools.partial(UniPC, order=3), 1, 2.8),
    (RungeKutta, 4, 3.8),
]
"""Sampler, calls a step, and the least slope between 36 and 144 calls."""


def slope(errors: list[torch.Tensor]) -> float:
    few, many = (error.flatten(1).norm(dim=1).median() for error in errors)
    return math.log(few / many) / math.log(4)


@functools.cache
def reference() -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.randn(96, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise, RungeKutta(steps=120, spacing=KARRAS)(two_classes(VarianceExploding()), noise, NOTHING)


@pytest.mark.parametrize(("sampler", "calls", "least"), ORDERS)
def test_on_the_mixture(sampler: Callable[..., Sampler], calls: int, least: float):
    noise, truth = reference()
    exact = two_classes(VarianceExploding())
    steps = [n // calls for n in (36, 144)]
    assert slope([sampler(steps=n, spacing=KARRAS)(exact, noise, NOTHING) - truth for n in steps]) >= least


@pytest.mark.parametrize(("sampler", "calls", "least"), ORDERS)
def test_on_a_gaussian_whose_flow_is_known(sampler: Callable[..., Sampler], calls: int, least: float):
    exact = correlated(VarianceExploding())
    noise = torch.randn(64, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = exact.flow(80 * noise, 1.0, 0.0)
    steps = [n // calls for n in (36, 144)]
    assert slope([sampler(steps=n, spacing=KARRAS)(exact, noise, NOTHING) - truth for n in steps]) >= least


@pytest.mark.parametrize(("sampler", "least"), [(Euler, 0.95), (Heun, 1.8), (RungeKutta, 3.6)])
def test_even_steps_from_pure_noise(sampler: Callable[..., Sampler], least: float):
    """From where the signal is nothing to where the noise is, in the straight path's own time."""
    exact = correlated(RectifiedFlow())
    noise = torch.randn(64, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = exact.flow(noise, 1.0, 0.0)
    errors = [sampler(steps=n, spacing=Even())(exact, noise, NOTHING) - truth for n in (10, 40)]
    assert slope(errors) >= least
