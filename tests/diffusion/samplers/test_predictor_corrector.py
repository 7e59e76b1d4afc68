from __future__ import annotations

import itertools

import pytest
import torch

from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.euler import Euler
from diffusion.samplers.predictor_corrector import PredictorCorrector
from diffusion.samplers.sampler import OneStep
from diffusion.samplers.spacing import Even
from tests.diffusion.exact import two_classes
from tests.diffusion.samplers.oracle import NOTHING


@pytest.mark.parametrize("predictor", [Euler(steps=5), DDPM(steps=5, spacing=Even(shift=2.0))])
def test_each_step_is_corrected_with_noise_of_its_own(predictor: OneStep):
    exact, generator = two_classes(), torch.Generator().manual_seed(0)
    fresh = torch.randn(20, 3, 2, 1, 1, generator=generator, dtype=torch.float64)
    sampler = PredictorCorrector(predictor=predictor, corrections=2, ratio=0.2)
    times = predictor.spacing(exact.schedule, 5)
    assert sampler.spacing(exact.schedule, sampler.steps) == times

    x, used = fresh[19], iter(fresh)
    for t, s in itertools.pairwise(times):
        own = next(used)
        x = predictor.step(exact, x, t, s, NOTHING, lambda _, own=own: own)
        if s > 0:
            sigma = exact.schedule.at(s)[1]
            for _ in range(2):
                size = 2 * (0.2 * sigma) ** 2
                x = x + size * exact.score(x, s, NOTHING) + (2 * size) ** 0.5 * next(used)
    ours = sampler(exact, fresh[19], NOTHING, fresh.__getitem__)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_it_mends_the_error_of_large_steps():
    """At the endpoint's spread, which Euler's large steps make too small."""
    exact = two_classes()
    normal = lambda n: torch.randn(  # noqa: E731
        2000, 2, 1, 1, generator=torch.Generator().manual_seed(n), dtype=torch.float64
    )
    _, covariance = exact.moments()
    plain = Euler(steps=12)(exact, normal(0), NOTHING)
    mended = PredictorCorrector(predictor=Euler(steps=12), corrections=5)(
        exact, normal(0), NOTHING, lambda n: normal(1 + n)
    )
    errors = [(x.flatten(1).T.cov() - covariance).norm() for x in (mended, plain)]
    assert errors[0] < errors[1]
