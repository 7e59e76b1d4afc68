from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffusion.ema import EMA, Profile, combined, exponent, reconstruction


def test_known_widths():
    """Karras et al., 2024, Section 3.1: gamma = 16.97 and 6.94 for 5 % and 10 %."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_width_is_the_spread_of_the_profile(width: float):
    gamma = exponent(width)
    tau = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    profile = tau**gamma / (tau**gamma).sum()
    mean = (profile * tau).sum()
    assert (profile * (tau - mean) ** 2).sum().sqrt().item() == pytest.approx(width, rel=1e-4)


@pytest.mark.parametrize("width", [0.0, 0.3, -0.1])
def test_impossible_widths_are_refused(width: float):
    with pytest.raises(ValueError, match="ema"):
        exponent(width)


@pytest.mark.parametrize("batch", [1, 48])
def test_average_has_the_exact_profile(batch: int):
    """(gamma + 1) / T^(gamma + 1) times the integral of tau^gamma theta(tau), theta piecewise constant."""
    steps, width = 50, 0.1
    path = torch.randn(steps, 7, dtype=torch.float64)
    module = nn.Linear(7, 1, bias=False)
    ema = EMA(module, widths=[width])
    for n, weights in enumerate(path):
        module.weight.data = weights[None].float()
        ema.update(module, images_seen=(n + 1) * batch, batch=batch)

    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (exponent(width) + 1)
    torch.testing.assert_close(
        ema.averages[width]["weight"][0].double(), edges.diff() @ path, rtol=1e-5, atol=1e-6
    )


def test_the_first_step_forgets_the_initial_weights():
    module = nn.Linear(3, 1)
    ema = EMA(module, widths=[0.1])
    nn.init.constant_(module.weight, 5.0)
    ema.update(module, images_seen=8, batch=8)
    assert ema.averages[0.1]["weight"].tolist() == [[5.0, 5.0, 5.0]]


def test_bf16_weights_are_averaged_in_fp32():
    module = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    ema = EMA(module, widths=[0.25])
    for n in range(64):  # around 1, bf16 is too coarse for the average to move
        nn.init.constant_(module.weight, 1.0 if n % 2 else 1.0078125)
        ema.update(module, images_seen=n + 1, batch=1)
    average = ema.averages[0.25]["weight"]
    assert average.dtype == torch.float32
    assert 1.001 < average.item() < 1.007
    copy = nn.Linear(1, 1, bias=False)
    ema.copy_to(copy)
    assert copy.weight.equal(average)


def test_the_first_of_two_widths_is_the_one_to_use():
    module = nn.Linear(3, 2)
    both, wide = EMA(module), EMA(module, widths=[0.1])
    for n in range(9):
        nn.init.normal_(module.weight)
        for ema in (both, wide):
            ema.update(module, images_seen=4 * (n + 1), batch=4)
    assert both.widths == (0.05, 0.1)
    assert both.averages[0.1]["weight"].equal(wide.averages[0.1]["weight"])
    assert both.state_dict().keys() == {"weight", "bias", "0.1/weight", "0.1/bias"}
    copy = nn.Linear(3, 2)
    both.copy_to(copy)
    assert copy.weight.equal(both.averages[0.05]["weight"])

    other = EMA(nn.Linear(3, 2))
    other.load_state_dict(both.state_dict())
    assert all(tensor.equal(other.state_dict()[name]) for name, tensor in both.state_dict().items())


@pytest.mark.parametrize("other", [EMA(nn.Linear(2, 2)), EMA(nn.Linear(2, 2, bias=False), widths=[0.1])])
def test_averages_of_another_network_or_width_are_refused(other: EMA):
    with pytest.raises(ValueError, match="another network"):
        EMA(nn.Linear(2, 2), widths=[0.1]).load_state_dict(other.state_dict())


STEPS, BATCH = 640, 8


def stored(path: Tensor, *, every: int, widths: list[float]) -> dict[Profile, dict[str, Tensor]]:
    """Averages of `path` [steps, n], and their copies every so many steps."""
    module = nn.Linear(path.shape[1], 1, bias=False)
    ema, kept = EMA(module, widths=widths), {}
    for n, weights in enumerate(path.float()):
        module.weight.data = weights[None]
        ema.update(module, images_seen=(n + 1) * BATCH, batch=BATCH)
        if (n + 1) % every == 0:
            for width, averages in ema.averages.items():
                profile = Profile(images_seen=(n + 1) * BATCH, width=width)
                kept[profile] = {name: tensor.clone() for name, tensor in averages.items()}
    return kept


@pytest.fixture(scope="module")
def path() -> Tensor:
    """Weights that drift and shake as in a training: from 1 on, ever slower, under a random walk's steps."""
    t = (torch.arange(STEPS, dtype=torch.float64)[:, None] + 1) / STEPS
    rates = torch.linspace(1, 8, 16, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(STEPS, 16, dtype=torch.float64, generator=generator)
    return 1 + torch.exp(-rates * t) + 0.02 * noise


@pytest.mark.parametrize("width", [0.03, 0.05, 0.075, 0.1, 0.15, 0.2])
@pytest.mark.parametrize(("count", "close"), [(8, 1e-2), (32, 1e-3)])
def test_any_width_is_made_of_two(path: Tensor, width: float, count: int, close: float):
    (target, directly), *_ = reversed(stored(path, every=STEPS, widths=[width]).items())
    kept = stored(path, every=STEPS // count, widths=[0.05, 0.10])
    factors, misfit = reconstruction(list(kept), target)
    made = combined(kept.values(), factors)
    error = made["weight"] - directly["weight"]

    # Cauchy and Schwarz: what the profiles differ by meets what the weights depart from a constant by.
    profile = (exponent(width) + 1) / (2 * exponent(width) + 1) ** 0.5
    bound = misfit * profile * (path - path.mean(0)).square().mean(0).sqrt()
    assert (error[0].abs() <= bound + 1e-5).all()
    assert error.abs().max() < close
    if width in (0.05, 0.10):
        assert misfit < 1e-6
        assert error.abs().max() < 1e-5


def test_averages_stored_late_or_earlier_than_the_target(path: Tensor):
    """Only what ended by then counts, whatever the order; and an average of before is as good as any."""
    kept = stored(path, every=20, widths=[0.05, 0.10])
    (target, directly), *_ = stored(path[: STEPS // 2], every=STEPS // 2, widths=[0.08]).items()
    shuffled = dict(sorted(kept.items(), key=lambda item: hash(item[0])))
    factors, misfit = reconstruction(list(shuffled), target)
    assert misfit < 5e-3
    assert all(f == 0 for p, f in zip(shuffled, factors, strict=True) if p.images_seen > target.images_seen)
    torch.testing.assert_close(combined(shuffled.values(), factors), directly, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="no average is stored of the first 100 images"):
        reconstruction(list(kept), Profile(images_seen=100, width=0.1))


def test_weights_that_stood_still_are_themselves():
    profiles = [Profile(images_seen=n, width=0.05) for n in (10, 20)]
    factors, misfit = reconstruction(profiles, Profile(images_seen=20, width=0.28))
    assert misfit > 0.3
    assert sum(factors) == pytest.approx(1, abs=1e-12)
