from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.guidance import Autoguidance, ClassifierFree
from diffusion.noise import Schedule, Time
from tests.diffusion.exact import SCHEDULES, ExactMixture, two_classes


@dataclass
class Counted:
    """A denoiser that notes the size of each batch it is given."""

    denoiser: ExactMixture
    batches: list[int] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: torch.Tensor, t: Time, conditioning: Conditioning) -> torch.Tensor:
        self.batches.append(len(x_t))
        return self.denoiser(x_t, t, conditioning)


def score(
    denoiser: ExactMixture, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    x_t = x_t.clone().requires_grad_()
    return torch.autograd.grad(denoiser.log_density(x_t, t, conditioning).sum(), x_t)[0]


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7, 4.0])
def test_guidance_is_the_extrapolated_score(scale: float):
    """(1 - w) grad log p(x_t) + w grad log p(x_t | y); by Tweedie, score = (alpha x̂ - x_t) / sigma^2."""
    exact = two_classes()
    x_t = torch.randn(6, 2, 1, 1, dtype=torch.float64)
    t = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
    alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in exact.schedule(t))
    one, every = exact.conditioning(1, 6), exact.conditioning(2, 6)

    guided = (alpha * ClassifierFree(exact, scale)(x_t, t, one) - x_t) / sigma**2
    expected = (1 - scale) * score(exact, x_t, t, every) + scale * score(exact, x_t, t, one)
    torch.testing.assert_close(guided, expected)


def test_outside_the_interval_the_conditional_answer_stands():
    exact = two_classes()
    x_t = torch.randn(5, 2, 1, 1, dtype=torch.float64)
    t = torch.tensor([0.1, 0.2, 0.5, 0.7, 0.8], dtype=torch.float64)
    one = exact.conditioning(0, 5)
    inside = torch.tensor([False, True, True, True, False])

    limited = ClassifierFree(exact, 3.0, interval=(0.2, 0.7))(x_t, t, one)
    torch.testing.assert_close(limited[inside], ClassifierFree(exact, 3.0)(x_t, t, one)[inside])
    torch.testing.assert_close(limited[~inside], exact(x_t, t, one)[~inside])


def test_one_batch_of_twice_the_size_and_only_where_it_is_needed():
    x_t, t = torch.randn(3, 2, 1, 1, dtype=torch.float64), 0.9
    for scale, interval, expected in [(2.0, (0.0, 1.0), 6), (2.0, (0.0, 0.5), 3), (1.0, (0.0, 1.0), 3)]:
        counted = Counted(two_classes())
        ClassifierFree(counted, scale, interval)(x_t, t, counted.denoiser.conditioning(0, 3))
        assert counted.batches == [expected]


def test_without_conditions_there_is_nothing_to_guide():
    counted = Counted(two_classes())
    x_t, t = torch.randn(3, 2, 1, 1, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    assert ClassifierFree(counted, 5.0)(x_t, t, Conditioning()).equal(
        counted.denoiser(x_t, t, Conditioning())
    )
    assert counted.batches == [3]


@pytest.mark.parametrize("t", [0.3, torch.full((4,), 0.3, dtype=torch.float64)])
def test_autoguidance_leads_away_from_the_worse_model_on_any_path(t: Time):
    """x̂ = worse + w (better - worse), the worse one asked at the same place of its own path."""
    better = two_classes()
    x_t, one = torch.randn(4, 2, 1, 1, dtype=torch.float64), better.conditioning(1, 4)
    wide = ExactMixture(better.mean, 2 * better.std, better.weight)
    expected = wide(x_t, t, one) + 1.7 * (better(x_t, t, one) - wide(x_t, t, one))
    for schedule in SCHEDULES.values():
        worse = ExactMixture(better.mean, 2 * better.std, better.weight, schedule)
        guided = Autoguidance(better, 1.7, worse=worse)(x_t, t, one)
        torch.testing.assert_close(guided, expected, rtol=1e-6, atol=1e-6)


def test_guidance_composes():
    exact = two_classes()
    x_t, one = torch.randn(4, 2, 1, 1, dtype=torch.float64), exact.conditioning(1, 4)
    free = ClassifierFree(exact, 2.0)
    both = Autoguidance(free, 1.5, worse=exact)(x_t, 0.4, one)
    torch.testing.assert_close(both, exact(x_t, 0.4, one).lerp(free(x_t, 0.4, one), 1.5))


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_contrast_back(share: float):
    """Lin et al., 2024: std = share std(conditional) + (1 - share) std(guided)."""
    exact = two_classes()
    x_t, one = torch.randn(5, 2, 1, 1, dtype=torch.float64), exact.conditioning(1, 5)
    plain = ClassifierFree(exact, 4.0)(x_t, 0.6, one)
    rescaled = ClassifierFree(exact, 4.0, rescale=share)(x_t, 0.6, one)
    contrast = share * exact(x_t, 0.6, one).flatten(1).std(1) + (1 - share) * plain.flatten(1).std(1)
    torch.testing.assert_close(rescaled.flatten(1).std(1), contrast)
    torch.testing.assert_close(
        rescaled / rescaled.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1),
        plain / plain.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1),
    )


def test_rows_with_times_of_their_own_are_guided_as_rows_alone():
    exact = two_classes()
    x_t, one = torch.randn(3, 2, 1, 1, dtype=torch.float64), exact.conditioning(1, 3)
    free, times = ClassifierFree(exact, 3.0, interval=(0.2, 0.7)), [0.1, 0.5, 0.9]
    together = free(x_t, torch.tensor(times, dtype=torch.float64), one)
    alone = torch.cat([free(x_t[n : n + 1], t, one[n : n + 1]) for n, t in enumerate(times)])
    torch.testing.assert_close(together, alone)
