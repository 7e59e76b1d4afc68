from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.latents import LatentStatistics
from diffusion.likelihood import (
    LEVEL,
    Probes,
    Rademacher,
    bits_per_dimension,
    dequantised,
    log_likelihood,
)
from diffusion.noise import RectifiedFlow, Schedule
from tests.diffusion.exact import SCHEDULES, ExactMixture, correlated, two_classes


def mixture(schedule: Schedule | None = None, *, flat: float = 0.3) -> ExactMixture:
    """Four components in eight dimensions, whitened; in four of these they have deviations from `flat` on."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 2, 2, 2, generator=generator, dtype=torch.float64)
    std = 0.3 + 0.3 * torch.rand(4, 2, 2, 2, generator=generator, dtype=torch.float64)
    std[:, 0] *= flat / 0.3
    mix = ExactMixture(mean, std, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    centre, covariance = mix.moments()
    scale = covariance.diagonal().sqrt().reshape(2, 2, 2)
    mean = (mean - centre.reshape(2, 2, 2)) / scale
    return ExactMixture(mean, std / scale, mix.weight, schedule or RectifiedFlow())


def test_the_exact_trace_gives_the_exact_density():
    for exact, steps, tolerance in ((two_classes(), 160, 2e-3), (mixture(), 32, 0.05)):
        x, every = exact.sample(16), exact.conditioning(len(exact.weight), 16)
        estimated = log_likelihood(exact, x, every, steps=steps)
        assert (estimated - exact.log_density(x, 0.0, every)).abs().max() < tolerance


@pytest.mark.parametrize("name", ["VP scaled linear", "VE"])
def test_on_a_path_that_does_not_end_in_pure_noise(name: str):
    """alpha is 0.07 in the end of the first, whose prior is the worst."""
    exact = mixture(SCHEDULES[name])
    x, every = exact.sample(16), exact.conditioning(4, 16)
    off = log_likelihood(exact, x, every, steps=30) - exact.log_density(x, 0.0, every)
    assert off.abs().max() < 0.15


def test_the_density_of_a_class():
    exact = two_classes()
    x, first = exact.sample(8), exact.conditioning(0, 8)
    estimated = log_likelihood(exact, x, first, steps=80)
    torch.testing.assert_close(estimated, exact.log_density(x, 0.0, first), rtol=0, atol=0.05)


def test_latents_that_hardly_vary_in_some_directions():
    exact = mixture(flat=0.01)
    x, every = exact.sample(16), exact.conditioning(4, 16)
    off = log_likelihood(exact, x, every, steps=40) - exact.log_density(x, 0.0, every)
    assert off.abs().mean() < 0.15


def test_random_probes_are_unbiased_and_what_each_evaluation_draws_anew_cancels():
    """One probe that is kept all the way leaves a nat or two, and four of them half of it."""
    exact, count, shape = mixture(), 600, (2, 2, 2)
    x, every = exact.sample(count, seed=1), exact.conditioning(4, count)
    precise = log_likelihood(exact, x, every, steps=20)

    def left(probes: Probes) -> Tensor:
        return log_likelihood(exact, x, every, probes, steps=20) - precise

    fresh = Rademacher(0, np.arange(count), shape)
    off, kept = left(fresh), left(lambda _: fresh(0)).std()
    assert off.mean().abs() / (off.std() / math.sqrt(count)) < 3
    assert off.std() < 0.7
    assert 1 < kept < 2.5
    four = Rademacher(0, np.arange(count), shape, 4)(0)
    assert left(lambda _: four).std() == pytest.approx(float(kept) / 2, rel=0.3)


def test_probes_are_signs_and_a_rows_own():
    positions, shape = np.arange(40), (1, 4, 6)
    probes = Rademacher(3, positions, shape, 2)
    first, second = probes(0), probes(1)
    assert first.shape == (2, 40, 1, 4, 6)
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    assert abs(first.mean()) < 0.1
    assert (first * second).flatten(2).mean(2).abs().max() < 0.9
    assert Rademacher(3, positions[[7, 2]], shape)(1).equal(second[:1, [7, 2]])
    assert not first[0].equal(first[1])
    assert not Rademacher(4, positions, shape, 2)(0).equal(first)


def test_single_precision_is_enough():
    exact = mixture()
    single = ExactMixture(exact.mean.float(), exact.std.float(), exact.weight.float())
    x, every = exact.sample(16), exact.conditioning(4, 16)
    probes = Rademacher(0, np.arange(16), (2, 2, 2))
    estimated = log_likelihood(single, x.float(), every, probes, steps=40)
    assert estimated.dtype == torch.float64
    precise = log_likelihood(exact, x, every, probes, steps=40)
    torch.testing.assert_close(estimated, precise, rtol=0, atol=0.01)


def test_bits_per_dimension():
    """Pixels of which nothing is known take 8 bits; latents N(0, std^2) their differential entropy."""
    shape, statistics = (3, 2, 2), LatentStatistics(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    jacobian = 4 * math.log(0.5 * 0.25 * 2.0)
    uniform = torch.full((2,), -12 * math.log(2 + LEVEL) + jacobian, dtype=torch.float64)
    bits = bits_per_dimension(uniform, shape, statistics, bin_width=LEVEL)
    assert bits.tolist() == pytest.approx([8.0, 8.0])

    exact = correlated()
    x = exact.sample(4000)
    plain = LatentStatistics(mean=(0.0,), std=(3.0,))
    bits = bits_per_dimension(exact.log_density(x, 0.0), (1, 2, 3), plain).mean()
    entropy = (exact.covariance.logdet() / 6 + math.log(2 * math.pi * math.e)) / 2 + math.log(3.0)
    assert float(bits) == pytest.approx(float(entropy) / math.log(2), abs=0.02)


def test_dequantised_pixels_fill_their_levels():
    pixels = torch.arange(256.0).reshape(1, 1, 16, 16) / 127.5 - 1
    spread = dequantised(pixels, torch.rand(1, 1, 16, 16))
    assert ((spread + 1) * 127.5).round().flatten().tolist() == list(range(256))
    assert dequantised(pixels, torch.zeros(1, 1, 16, 16)).min() == pytest.approx(-1 - LEVEL / 2)


def test_a_gaussian_without_conditions():
    exact = correlated()
    x = exact.sample(8)
    estimated = log_likelihood(exact, x, Conditioning(), steps=40)
    torch.testing.assert_close(estimated, exact.log_density(x, 0.0), rtol=0, atol=0.02)
