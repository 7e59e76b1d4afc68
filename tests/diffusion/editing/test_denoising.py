from __future__ import annotations

import pytest
import torch

from diffusion.conditioning import Conditioning
from diffusion.editing.denoising import denoise, draw_denoised
from diffusion.noise import RectifiedFlow, Schedule, VarianceExploding
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.heun import Heun
from diffusion.samplers.sampler import Sampler
from diffusion.samplers.spacing import Karras
from tests.diffusion.exact import SCHEDULES, correlated, two_classes


@pytest.mark.parametrize("level", [0.05, 0.7, 5.0])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_mean_is_the_posteriors(schedule: Schedule, level: float):
    """Of a Gaussian by its gain; of a mixture by Tweedie: y + level^2 times the score of noisy images."""
    exact = correlated(schedule)
    noisy = exact.sample(3) + level * torch.randn(3, 1, 2, 3, dtype=torch.float64)
    means = denoise(exact, noisy, level, Conditioning())
    for row, mean in zip(noisy, means, strict=True):
        expected, _ = exact.posterior(torch.eye(6, dtype=torch.float64), row.flatten(), level)
        torch.testing.assert_close(mean.flatten(), expected, rtol=1e-5, atol=1e-5)

    mixture, every = two_classes(schedule), two_classes().conditioning(2, 4)
    noisy = (mixture.sample(4) + level * torch.randn(4, 2, 1, 1, dtype=torch.float64)).requires_grad_()
    exploding = two_classes(VarianceExploding(sigma_max=10.0, rho=1.0))
    density = exploding.log_density(noisy, level / 10, every)
    (score,) = torch.autograd.grad(density.sum(), noisy)
    expected = noisy + level**2 * score
    torch.testing.assert_close(denoise(mixture, noisy, level, every), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", [DDPM(steps=100), DDIM(steps=100, eta=1.0, spacing=Karras(high=20.0))])
def test_draws_have_the_posteriors_moments(sampler: Sampler):
    exact, level, count = correlated(), 0.7, 2000
    noisy = exact.sample(1)
    mean, covariance = exact.posterior(torch.eye(6, dtype=torch.float64), noisy.flatten(), level)
    generator = torch.Generator().manual_seed(0)

    def draws(number: int) -> torch.Tensor:
        return torch.randn(count, 1, 2, 3, generator=generator, dtype=torch.float64)

    drawn = draw_denoised(sampler, exact, noisy.expand(count, 1, 2, 3), level, Conditioning(), draws)
    error = (covariance.diagonal() / count).sqrt()
    assert ((drawn.flatten(1).mean(0) - mean) / error).abs().max() < 4
    torch.testing.assert_close(
        drawn.flatten(1).T.cov(), covariance, rtol=0, atol=0.1 * float(covariance.max())
    )


@pytest.mark.parametrize("level", [0.01, 1.3, 300.0])
def test_the_ode_leads_from_the_noisy_image(level: float):
    """Also from above the ladder's first rung, as Karras's lies at 80, and from below its last."""
    exact = correlated()
    noisy = exact.sample(4) + level * torch.randn(4, 1, 2, 3, dtype=torch.float64)
    u = level / (1 + level)
    expected = exact.flow((1 - u) * noisy, u, 0.0)
    drawn = draw_denoised(Heun(steps=50, spacing=Karras()), exact, noisy, level, Conditioning())
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.02)


def test_without_noise_nothing_is_done():
    exact = correlated()
    clean = exact.sample(2)
    assert denoise(exact, clean, 0.0, Conditioning()).equal(clean)
    assert draw_denoised(Heun(steps=2), exact, clean, 0.0, Conditioning()).equal(clean)


def test_levels_that_are_on_no_path_are_refused():
    for schedule, level in [(RectifiedFlow(), -0.1), (VarianceExploding(sigma_max=2.0), 2.1)]:
        with pytest.raises(ValueError, match="not on the path"):
            denoise(correlated(schedule), torch.zeros(1, 1, 2, 3), level, Conditioning())
