from __future__ import annotations

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser, Denoiser, On
from diffusion.guidance import ClassifierFree
from diffusion.preconditioning import Noise
from tests.diffusion.exact import SCHEDULES, two_classes

NOTHING = Conditioning()


def test_a_network_that_knows_the_velocity_denoises_exactly():
    x, z = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    denoiser = Denoiser(lambda x_t, c_noise, conditioning: z - x)
    torch.testing.assert_close(denoiser(denoiser.schedule.perturb(x, z, t), t, NOTHING), x)


def test_the_network_is_told_the_time_and_the_conditions():
    seen = []

    def network(x_t: torch.Tensor, c_noise: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        seen.append((c_noise, conditioning))
        return torch.zeros_like(x_t)

    t, conditioning = torch.tensor([0.2, 0.4]), Conditioning(label=torch.tensor([0, 1]), classes=2)
    x_t = torch.randn(2, 1, 2, 2)
    assert Denoiser(network)(x_t, t, conditioning).equal(x_t)
    assert seen[0][0].equal(t)
    assert seen[0][1] is conditioning


def test_a_bf16_network_leaves_the_arithmetic_in_fp32():
    x_t = torch.randn(2, 1, 2, 2)
    clean = Denoiser(lambda x, c, _: torch.ones_like(x, dtype=torch.bfloat16))(
        x_t, torch.tensor([0.5, 1.0]), NOTHING
    )
    assert clean.dtype == torch.float32
    torch.testing.assert_close(clean, x_t - torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1), rtol=0, atol=0)


def test_all_three_sorts_are_denoisers():
    exact = two_classes()
    for denoiser in (exact, Denoiser(lambda x, c, _: x), ClassifierFree(exact, scale=2.0)):
        assert isinstance(denoiser, AnyDenoiser)


@pytest.mark.parametrize("there", SCHEDULES)
@pytest.mark.parametrize("own", SCHEDULES)
def test_a_denoiser_of_one_path_is_one_of_all(own: str, there: str):
    on, exact = On(two_classes(SCHEDULES[own]), SCHEDULES[there]), two_classes(SCHEDULES[there])
    x_t = 2 * torch.randn(4, 2, 1, 1, dtype=torch.float64)
    times = torch.tensor([0.05, 0.3, 0.5, 0.7], dtype=torch.float64)
    torch.testing.assert_close(on(x_t, times, NOTHING), exact(x_t, times, NOTHING), rtol=1e-6, atol=1e-6)
    for t in (0.05, 0.6):
        torch.testing.assert_close(on(x_t, t, NOTHING), exact(x_t, t, NOTHING), rtol=1e-6, atol=1e-6)


def test_beyond_its_own_noise_it_is_asked_at_its_last_time():
    asked = []

    def network(x: torch.Tensor, c_noise: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        asked.append(c_noise)
        return x

    on = On(Denoiser(network, SCHEDULES["VP linear"], Noise()), SCHEDULES["rectified flow"])
    assert on(torch.randn(2, 1, 2, 2), 1.0, NOTHING).isfinite().all()
    torch.testing.assert_close(asked[0], torch.ones(2))
