from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from diffusion import config
from diffusion.conditioning import Conditioning
from diffusion.config import (
    DDIMConfig,
    DDPMConfig,
    DPMConfig,
    EulerConfig,
    GuidanceConfig,
    HeunConfig,
    LogitNormalConfig,
    OptimizationConfig,
    PredictorCorrectorConfig,
    SamplerConfig,
    UniformConfig,
    UniPCConfig,
)
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.dpm import DPM
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from diffusion.samplers.predictor_corrector import PredictorCorrector
from diffusion.samplers.sampler import Sampler
from diffusion.samplers.spacing import Even, Karras, LogSNR
from diffusion.samplers.unipc import UniPC
from diffusion.times import LogitNormal, Uniform
from tests.diffusion.exact import two_classes


def test_configurations_load_without_torch():
    code = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = sys.modules["jaxtyping"] = None
import diffusion
from diffusion import config
for name in dir(diffusion):
    if name.endswith("Config"):
        kind = getattr(diffusion, name)
        assert kind is getattr(config, name), name
        if isinstance(kind, type):
            kind()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [n for n in dir(config) if isinstance(getattr(config, n), type)])
def test_configurations_are_frozen_and_say_what_their_fields_mean(name: str):
    kind = getattr(config, name)
    assert kind.__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().__setattr__(dataclasses.fields(kind)[0].name, None)


SAMPLERS: list[tuple[SamplerConfig, Sampler]] = [
    (EulerConfig(steps=7, shift=2.0), Euler(steps=7, spacing=Even(shift=2.0))),
    (HeunConfig(steps=7, churn=3.0), Heun(steps=7, churn=3.0)),
    (DPMConfig(steps=7, spacing="karras"), DPM(steps=7, spacing=Karras())),
    (UniPCConfig(steps=7, order=3, spacing="log_snr"), UniPC(steps=7, order=3, spacing=LogSNR())),
    (DDIMConfig(steps=7, eta=0.5), DDIM(steps=7, eta=0.5)),
    (DDPMConfig(steps=7, variance="large"), DDPM(steps=7, variance="large")),
    (
        PredictorCorrectorConfig(steps=7, shift=2.0, corrections=3, ratio=0.1),
        PredictorCorrector(predictor=Euler(steps=7, spacing=Even(shift=2.0)), corrections=3, ratio=0.1),
    ),
]


@pytest.mark.parametrize(("chosen", "expected"), SAMPLERS)
def test_samplers_are_built_as_chosen_and_say_what_they_cost(chosen: SamplerConfig, expected: Sampler):
    assert chosen.build() == expected
    exact, asked = two_classes(), []

    class Counted:
        schedule = exact.schedule

        def __call__(self, x_t: torch.Tensor, t: float, conditioning: Conditioning) -> torch.Tensor:
            asked.append(t)
            return exact(x_t, t, conditioning)

    noise = torch.randn(1, 2, 1, 1, dtype=torch.float64)
    chosen.build()(Counted(), noise, Conditioning(), lambda _: noise)
    assert len(asked) == chosen.calls


def test_choices_build_what_they_say():
    assert UniformConfig(shift=2.0).build() == Uniform(shift=2.0)
    assert LogitNormalConfig(mean=0.5, std=2.0, shift=2.0).build() == LogitNormal(
        mean=0.5, std=2.0, shift=2.0
    )
    exact = two_classes()
    guided = GuidanceConfig(scale=3.0, interval=(0.1, 0.9)).build(exact)
    assert (guided.denoiser, guided.scale, guided.interval) == (exact, 3.0, (0.1, 0.9))


def test_learning_rate_warms_up_stays_and_cools_down():
    optimization = OptimizationConfig(lr=2.0, warmup=100, cooldown=200)
    rates = [optimization.learning_rate(n, batch=10, target_images=1000) for n in range(0, 1000, 10)]
    assert rates[:9] == pytest.approx([0.2 * n for n in range(1, 10)])
    assert rates[9:81] == [2.0] * 72
    assert rates[81:] == pytest.approx([2.0 * n / 20 for n in range(19, 0, -1)])


def test_a_cosine_over_the_whole_training():
    optimization = OptimizationConfig(lr=2.0, warmup=0, cooldown=1000, cooldown_shape="cosine")
    rates = [optimization.learning_rate(n, batch=10, target_images=1000) for n in range(0, 1000, 10)]
    assert rates == pytest.approx([1 + math.cos(math.pi * n / 100) for n in range(100)])


def test_an_inverse_square_root_after_the_warm_up():
    """Karras et al., 2024: flat up to `inverse_sqrt_after`, then half at four times as many images."""
    optimization = OptimizationConfig(lr=2.0, warmup=100, inverse_sqrt_after=400)
    rates = [optimization.learning_rate(n, batch=10, target_images=10_000) for n in (40, 90, 400, 1600, 6400)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="inverse_sqrt_after is 0"):
        OptimizationConfig(inverse_sqrt_after=0)


@pytest.mark.parametrize("changes", [{}, {"cooldown_shape": "cosine"}, {"inverse_sqrt_after": 300}])
def test_before_the_cooldown_the_target_does_not_matter(changes: dict[str, Any]):
    optimization = OptimizationConfig(warmup=100, cooldown=200, **changes)
    for images_seen in range(10, 1001, 10):
        steps = range(0, images_seen, 10)
        same = all(
            optimization.learning_rate(n, batch=10, target_images=1000)
            == optimization.learning_rate(n, batch=10, target_images=5000)
            for n in steps
        )
        assert same == optimization.before_cooldown(images_seen, batch=10, target_images=1000)


def test_a_constant_rate_needs_no_images():
    optimization = OptimizationConfig(lr=0.5, warmup=0, cooldown=0)
    assert optimization.learning_rate(0, batch=8, target_images=8) == 0.5


def test_the_optimizer_leaves_frozen_parameters_out():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    (optimizer,) = OptimizationConfig().build(module)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in module[1].parameters()]
    assert group["fused"]
