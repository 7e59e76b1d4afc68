from __future__ import annotations

import itertools

import pytest
import torch

from diffusion.guidance import ClassifierFree
from diffusion.noise import RectifiedFlow
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from diffusion.samplers.sampler import Sampler
from diffusion.samplers.spacing import Even
from tests.diffusion.exact import two_classes

SAMPLERS = [Euler(steps=60), Heun(steps=30, spacing=Even(shift=2.0))]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_go_all_the_way(shift: float):
    times = Even(shift=shift)(RectifiedFlow(), 10)
    assert len(times) == 11
    assert times[0] == 1
    assert times[-1] == 0
    assert all(t > s for t, s in itertools.pairwise(times))
    assert times[5] == pytest.approx(shift / (1 + shift))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_row_does_not_depend_on_its_batch(sampler: Sampler):
    exact = ClassifierFree(two_classes(), scale=1.5)
    noise = torch.randn(6, 2, 1, 1, dtype=torch.float64)
    conditioning = two_classes().conditioning(1, 6)
    whole = sampler(exact, noise, conditioning)
    parts = [sampler(exact, noise[s], conditioning[s]) for s in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_a_class_are_of_that_class(sampler: Sampler):
    exact = two_classes()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 2, 1, 1, generator=generator, dtype=torch.float64)
    for label in (0, 1):
        latents = sampler(exact, noise, exact.conditioning(label, 4000))
        torch.testing.assert_close(latents.mean(0), exact.mean[label], rtol=0, atol=0.05)
        torch.testing.assert_close(latents.std(0), exact.std[label], rtol=0.05, atol=0)


def test_sampling_keeps_no_graph_and_the_noise_as_it_was():
    noise = torch.randn(2, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    before = noise.detach().clone()
    latents = Heun(steps=3)(two_classes(), noise, two_classes().conditioning(0, 2))
    assert not latents.requires_grad
    assert noise.equal(before)
