from __future__ import annotations

import math

import pytest
import torch

from diffusion.metrics.psnr import EQUAL, luma, psnr, psnr_y


def test_of_a_known_error() -> None:
    image = torch.full((2, 3, 8, 8), 100.0)
    off = image.clone()
    off[1] += 5
    assert psnr(off, image).tolist() == pytest.approx([EQUAL, 20 * math.log10(255 / 5)])


def test_luma_has_the_studio_range() -> None:
    shades = torch.tensor([[0.0, 0, 0], [255, 255, 255], [255, 0, 0]])[:, :, None, None]
    assert luma(shades).flatten().tolist() == pytest.approx([16, 235, 16 + 65.481], abs=1e-3)


def test_the_border_is_left_out() -> None:
    image = torch.full((1, 3, 10, 10), 60.0)
    off = image.clone()
    off[..., 0, :] = 255
    off[..., :, -2:] = 255
    assert psnr_y(off, image, border=2).item() == EQUAL
    assert psnr_y(off, image, border=0).item() < 20
