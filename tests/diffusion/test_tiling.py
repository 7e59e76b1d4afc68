from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from diffusion.conditioning import Conditioning
from diffusion.noise import RectifiedFlow, Schedule
from diffusion.samplers.heun import Heun
from diffusion.tiling import Tiled


@dataclass(frozen=True, eq=False)
class Seen:
    """A denoiser that is any function of its input and the small image."""

    function: Callable[[Tensor], Tensor]
    schedule: Schedule = field(default_factory=RectifiedFlow)
    sizes: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.sizes.append(tuple(x_t.shape[-2:]))
        low = conditioning.low if conditioning.low is not None else torch.zeros_like(x_t)
        return self.function(x_t + low)


def convolutions() -> nn.Module:
    """Sees 4 places far."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 5, padding=2), nn.SiLU(), nn.Conv2d(8, 2, 5, padding=2)]
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (37, 90), (24, 65)])
def test_tiles_give_the_whole_where_the_network_sees_a_quarter_of_the_overlap(
    height: int, width: int
) -> None:
    whole = Seen(convolutions())
    tiled = Tiled(whole, size=32, overlap=16)
    noise = torch.randn(2, 2, height, width, generator=torch.Generator().manual_seed(1))
    told = Conditioning(low=torch.rand(2, 2, height, width), level=torch.zeros(2))
    expected = Heun(steps=3)(whole, noise, told)
    whole.sizes.clear()
    torch.testing.assert_close(Heun(steps=3)(tiled, noise, told), expected, rtol=1e-5, atol=1e-5)
    assert max(max(size) for size in whole.sizes) <= 32


def test_each_place_is_answered_once_in_the_mean() -> None:
    one = Tiled(Seen(torch.ones_like), size=8, overlap=3)
    x = torch.zeros(1, 1, 21, 30)
    assert torch.equal(one(x, torch.zeros(1), Conditioning()), torch.ones_like(x))


def test_what_fits_is_one_tile() -> None:
    seen = Seen(lambda x: x)
    Tiled(seen, size=16, overlap=4)(torch.zeros(1, 1, 16, 9), torch.zeros(1), Conditioning())
    assert seen.sizes == [(16, 9)]


def test_tiles_must_be_larger_than_their_overlap() -> None:
    with pytest.raises(ValueError, match="cannot overlap by 8"):
        Tiled(Seen(lambda x: x), size=8, overlap=8)
