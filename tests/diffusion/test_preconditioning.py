from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import Denoiser
from diffusion.noise import RectifiedFlow, Schedule, Time, VariancePreserving, broadcast
from diffusion.preconditioning import EDM, Clean, FlowVelocity, Noise, Preconditioning, Velocity
from tests.diffusion.exact import SCHEDULES, gaussian, named

ALL: list[Preconditioning] = [FlowVelocity(), Velocity(), Noise(), Clean(), EDM(), EDM(data_std=0.5)]


def target(kind: Preconditioning, x: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the papers say that the network predicts."""
    norm = torch.hypot(alpha, sigma)
    match kind:
        case FlowVelocity():
            return z - x
        case Velocity():
            return (alpha * z - sigma * x) / norm
        case Noise():
            return z
        case Clean():
            return x
        case EDM(data_std=d):
            s = sigma / alpha
            y = x + s * z
            return (x - d**2 / (s**2 + d**2) * y) / (s * d / (s**2 + d**2).sqrt())
    raise AssertionError(kind)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ALL, ids=named)
def test_the_true_output_gives_the_true_latents(kind: Preconditioning, name: str):
    schedule = SCHEDULES[name]
    x, z = torch.randn(2, 5, 3, 2, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 0.95, 5, dtype=torch.float64)
    alpha, sigma = schedule.spread(t, x)
    assert isinstance(alpha, Tensor)
    assert isinstance(sigma, Tensor)
    output = target(kind, x, z, alpha, sigma)
    clean = Denoiser(lambda *_: output, schedule, kind) if alpha_at_end(schedule) or kind.at_noise else None
    if clean is None:
        c_skip, c_out, *_ = kind(*schedule(t), t)
        got = broadcast(c_skip, x) * schedule.perturb(x, z, t) + broadcast(c_out, x) * output
    else:
        got = clean(schedule.perturb(x, z, t), t, Conditioning())
    torch.testing.assert_close(got, x)


def alpha_at_end(schedule: Schedule) -> bool:
    return schedule.at(1.0)[0] > 0


def test_on_the_rectified_flow_it_is_one_subtraction():
    t = torch.tensor([0.0, 0.25, 1.0])
    c_skip, c_out, c_in, c_noise = FlowVelocity()(*RectifiedFlow()(t), t)
    assert c_skip.tolist() == [1, 1, 1]
    assert c_in.tolist() == [1, 1, 1]
    assert c_out.tolist() == [0, -0.25, -1]
    assert c_noise.equal(t)


@pytest.mark.parametrize("d", [0.5, 1.0, 2.0])
def test_edm_gives_the_network_unit_variance_in_and_out(d: float):
    """Karras et al., 2022, Appendix B.6: the requirements from which its coefficients follow."""
    schedule = SCHEDULES["VE"]
    t = torch.linspace(0.2, 1, 7, dtype=torch.float64)
    alpha, sigma = schedule(t)
    c_skip, c_out, c_in, c_noise = EDM(data_std=d)(alpha, sigma, t)
    torch.testing.assert_close(c_in**2 * (d**2 + sigma**2), torch.ones_like(t))
    variance = (1 - c_skip) ** 2 * d**2 + c_skip**2 * sigma**2  # of x - c_skip x_t
    torch.testing.assert_close(variance / c_out**2, torch.ones_like(t))
    torch.testing.assert_close(c_noise, sigma.log() / 4)


def test_what_says_nothing_at_pure_noise_is_refused_there():
    for schedule in (RectifiedFlow(), VariancePreserving.cosine().zero_terminal()):
        with pytest.raises(ValueError, match="take FlowVelocity, Velocity or Clean"):
            Denoiser(lambda *_: torch.zeros(1, 1, 1, 1), schedule, Noise())
        Denoiser(lambda *_: torch.zeros(1, 1, 1, 1), schedule, Velocity())
    Denoiser(lambda *_: torch.zeros(1, 1, 1, 1), VariancePreserving.cosine(), Noise())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", [FlowVelocity(), Velocity(), Clean()], ids=named)
def test_a_time_of_all_rows_is_the_same_as_one_of_each(kind: Preconditioning, name: str):
    exact = gaussian(1.0, torch.ones(1, 2, 2, dtype=torch.float64), SCHEDULES[name])
    denoiser = Denoiser(lambda x, c, _: torch.sin(x) + c.reshape(-1, 1, 1, 1), exact.schedule, kind)
    x_t = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    every: Time = torch.full((3,), 0.37, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x_t, 0.37, Conditioning()), denoiser(x_t, every, Conditioning()))
