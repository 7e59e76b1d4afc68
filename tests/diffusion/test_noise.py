from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from diffusion.noise import VarianceExploding, VariancePreserving, broadcast, dimension_shift, shifted
from tests.diffusion.exact import SCHEDULES

CHAINS = {
    "linear": (VariancePreserving.linear, {"beta_schedule": "linear"}),
    "scaled linear": (
        VariancePreserving.scaled_linear,
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (VariancePreserving.cosine, {"beta_schedule": "squaredcos_cap_v2"}),
}


def test_broadcast_gives_one_number_to_each_sample():
    x = torch.ones(2, 3, 4)
    assert (broadcast(torch.tensor([2.0, 5.0]), x) * x).sum((1, 2)).tolist() == [24, 60]
    assert (broadcast(torch.tensor(3.0), x) * x).sum().item() == 72


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_path_is_the_straight_one_stretched(name: str):
    schedule = SCHEDULES[name]
    x, z = torch.randn(2, 7, 3, 2, 2, dtype=torch.float64)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(schedule.perturb(x, z, t), broadcast(alpha, x) * x + broadcast(sigma, x) * z)
    u, scale = broadcast(sigma / (alpha + sigma), x), broadcast(alpha + sigma, x)
    torch.testing.assert_close(schedule.perturb(x, z, t), scale * ((1 - u) * x + u * z))
    torch.testing.assert_close(schedule.perturb(x, z, 0.0), x)
    assert (u.flatten().diff() > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_is_the_inverse_of_place(name: str):
    schedule = SCHEDULES[name]
    for t in np.linspace(0, 1, 101).tolist():
        assert schedule.time_at(schedule.place(t)) == pytest.approx(t, abs=1e-6)
        alpha, sigma = schedule.at(t)
        of_tensor = schedule(torch.tensor([t], dtype=torch.float64))
        assert [alpha, sigma] == pytest.approx([of_tensor[0].item(), of_tensor[1].item()], abs=1e-15)
    # Beyond a path's last place there is its last time.
    assert schedule.time_at(1.0) == pytest.approx(1.0)
    single = schedule.time(torch.tensor([0.1, 0.9], dtype=torch.float32))
    assert single.dtype == torch.float32


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_those_of_diffusers(name: str):
    make, options = CHAINS[name]
    chain, theirs = make(), DDPMScheduler(num_train_timesteps=1000, **options)
    torch.testing.assert_close(torch.from_numpy(chain.betas), theirs.betas.double(), rtol=0, atol=1e-6)
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    alpha, sigma = chain(t)
    torch.testing.assert_close(alpha**2, theirs.alphas_cumprod.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))

    zero: Any = DDIMScheduler(num_train_timesteps=1000, rescale_betas_zero_snr=True, **options)
    alpha, _ = chain.zero_terminal()(t)
    torch.testing.assert_close(alpha**2, zero.alphas_cumprod.double(), rtol=0, atol=1e-5)
    assert alpha[-1] == 0
    assert chain.zero_terminal().at(1.0) == (0.0, 1.0)


def test_little_noise_is_not_lost_in_single_precision():
    chain = VariancePreserving.scaled_linear()
    _, single = chain(torch.tensor([0.001]))
    assert single.item() == pytest.approx(0.00085**0.5, rel=1e-5)


def test_betas_that_are_no_chain_are_refused():
    for betas in ([], [0.1, 1.2], [0.0, 0.1], [1.0, 0.1]):
        with pytest.raises(ValueError, match="betas must lie in"):
            VariancePreserving(betas)


def test_the_exploding_path_adds_noise_alone():
    alpha, sigma = VarianceExploding(sigma_max=80.0)(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert alpha.tolist() == [1, 1, 1]
    torch.testing.assert_close(sigma ** (1 / 7), torch.linspace(0, 1, 3).double() * 80 ** (1 / 7))


def test_shift_keeps_the_ends_and_is_undone_by_its_inverse():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    moved = shifted(t, 3.0)
    assert moved[0] == 0
    assert moved[-1] == 1
    assert (moved[1:-1] > t[1:-1]).all()
    torch.testing.assert_close(shifted(moved, 1 / 3), t)
    # Esser et al., 2024: the shift is of odds sigma / alpha, by the factor itself.
    odds = t[1:-1] / (1 - t[1:-1])
    torch.testing.assert_close(moved[1:-1] / (1 - moved[1:-1]), 3 * odds)


def test_the_shift_of_a_size_goes_with_the_root_of_its_numbers():
    assert dimension_shift(4 * 32 * 32) == 1
    assert dimension_shift(4 * 64 * 64) == 2
