from __future__ import annotations

import torch
from torch.nn import functional as F

from diffusion.autoencoders.doubling import Doubling


def test_it_is_torchs_nearest_neighbour_in_either_layout() -> None:
    x = torch.randn(2, 3, 4, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        doubled = Doubling()(x.contiguous(memory_format=layout))
        assert torch.equal(doubled, F.interpolate(x, scale_factor=2.0, mode="nearest"))
        assert doubled.is_contiguous(memory_format=torch.channels_last)


def test_its_gradient_is_the_sum_of_what_a_place_became() -> None:
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    weights = torch.randn(1, 2, 6, 6)
    (gradient,) = torch.autograd.grad((Doubling()(x) * weights).sum(), x)
    torch.testing.assert_close(gradient, 4 * F.avg_pool2d(weights, 2))
