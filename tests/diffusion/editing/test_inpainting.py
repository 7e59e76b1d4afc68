from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_repaint
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.editing.inpainting import RePaint
from diffusion.noise import VariancePreserving
from diffusion.randomness import Draws
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.euler import Euler
from diffusion.samplers.heun import Heun
from diffusion.samplers.sampler import Sampler
from tests.diffusion.exact import correlated, two_classes

KNOWN = torch.tensor([True, False, False, True, False, True]).reshape(1, 1, 2, 3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("jump", "resamplings"), [(1, 3), (3, 2), (4, 1)])
def test_the_same_as_diffusers(eta: float, jump: int, resamplings: int, monkeypatch: pytest.MonkeyPatch):
    betas = np.linspace(0.01, 0.5, 12)
    exact = correlated(VariancePreserving(betas))
    generator = torch.Generator().manual_seed(0)
    noise, known = torch.randn(2, 3, 1, 2, 3, generator=generator, dtype=torch.float64)
    drawn: list[Tensor] = []

    def draw(shape: torch.Size, **_: object) -> Tensor:
        drawn.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        return drawn[-1]

    monkeypatch.setattr(scheduling_repaint, "randn_tensor", draw)
    theirs = scheduling_repaint.RePaintScheduler(12, trained_betas=betas, eta=eta, clip_sample=False)
    theirs.set_timesteps(12, jump_length=jump, jump_n_sample=resamplings)
    x, ours = noise, []
    for up, stretch in itertools.groupby(
        itertools.pairwise([12, *theirs.timesteps.tolist()]), lambda pair: pair[1] > pair[0]
    ):
        added, variance = torch.zeros_like(x), 0.0
        for last, t in stretch:
            if up:
                x = theirs.undo_step(x, last)
                added = (1 - betas[last]) ** 0.5 * added + betas[last] ** 0.5 * drawn[-1]
                variance = (1 - betas[last]) * variance + betas[last]
            else:
                time = (t + 1) / 12
                alpha, sigma = exact.schedule.at(time)
                x = theirs.step(
                    (x - alpha * exact(x, time, Conditioning())) / sigma, t, x, known, KNOWN.double()
                ).prev_sample
                # Their step and what is known share a draw, which nothing uses where all is clean.
                ours += [drawn[-1]] * (t > 0) * (2 if eta else 1)
        if up:  # rung by rung there, at once here
            ours.append(added / math.sqrt(variance))

    repaint = RePaint(sampler=DDIM(steps=12, eta=eta), resamplings=resamplings, jump=jump)
    scale = exact.schedule.at(1.0)[1]
    mine = repaint(exact, noise / scale, known, KNOWN, Conditioning(), lambda number: ours[number])
    torch.testing.assert_close(mine, x, rtol=2e-5, atol=2e-5)
    assert len(drawn) > len(ours) / 2 > 5


def test_resampling_brings_it_to_the_posterior_and_replacement_is_far():
    """Errors of mean and covariance in the unknown latents, in units of the posterior's deviations."""
    exact, count = correlated(), 1000
    seen = torch.tensor([1.0, 0.4, 0.5], dtype=torch.float64)
    known = torch.zeros(count, 1, 2, 3, dtype=torch.float64).masked_scatter(KNOWN, seen.expand(count, 3))
    rest = ~KNOWN.flatten()
    matrix = torch.eye(6, dtype=torch.float64)[~rest]
    mean, covariance = exact.posterior(matrix, seen, 0.0)
    mean, covariance = mean[rest], covariance[rest][:, rest]

    def draws(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        return torch.randn(count, 1, 2, 3, generator=generator, dtype=torch.float64)

    def errors(resamplings: int) -> tuple[float, float]:
        repaint = RePaint(sampler=DDIM(steps=24, eta=1.0), resamplings=resamplings, jump=4)
        drawn = repaint(exact, draws(-1), known, KNOWN, Conditioning(), draws).flatten(1)[:, rest]
        unit = covariance.diagonal().sqrt()
        off = (drawn.T.cov() - covariance) / (unit[:, None] * unit)
        return float(((drawn.mean(0) - mean) / unit).norm()), float(off.norm())

    (replaced, much), (resampled, _), (often, little) = errors(1), errors(4), errors(16)
    assert replaced > 1 > 0.7 > resampled > 0.3 > often
    assert much > 1 > 0.6 > little


@pytest.mark.parametrize("sampler", [Euler(steps=6), Heun(steps=6, churn=3.0), DDIM(steps=6, eta=0.5)])
def test_known_latents_come_out_to_the_last_bit_and_a_row_alone_as_in_a_batch(sampler: Sampler):
    exact = two_classes()
    noise = torch.randn(4, 2, 1, 1, dtype=torch.float64)
    known, mask = exact.sample(4), torch.tensor([True, False]).reshape(1, 2, 1, 1)
    repaint = RePaint(sampler=sampler, resamplings=2, jump=2)

    def painted(rows: slice) -> Tensor:
        draws = Draws(0, np.arange(4)[rows], (2, 1, 1))
        return repaint(exact, noise[rows], known[rows], mask, exact.conditioning(1, 4)[rows], draws)

    together = painted(slice(None))
    assert together[:, 0].equal(known[:, 0])
    assert not torch.isclose(together[:, 1], known[:, 1]).any()
    torch.testing.assert_close(torch.cat([painted(slice(0, 1)), painted(slice(1, 4))]), together)


def test_no_draw_is_used_twice():
    asked: list[int] = []

    def draws(number: int) -> Tensor:
        asked.append(number)
        return torch.zeros(1, 2, 1, 1, dtype=torch.float64)

    exact, x = two_classes(), torch.randn(1, 2, 1, 1, dtype=torch.float64)
    repaint = RePaint(sampler=DDIM(steps=6, eta=1.0), resamplings=3, jump=2)
    repaint(exact, x, x, torch.ones(1, 1, 1, 1, dtype=torch.bool), exact.conditioning(0, 1), draws)
    assert asked == list(range(len(asked)))


def test_jumps_that_the_ladder_has_not_are_refused():
    with pytest.raises(ValueError, match="take a shorter one"):
        RePaint(sampler=Euler(steps=10))
    RePaint(sampler=Euler(steps=10), resamplings=1)
