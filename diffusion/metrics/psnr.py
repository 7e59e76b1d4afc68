"""How far the pixels of two images lie apart."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

EQUAL = 100.0
"""dB that stand for images without any difference."""


def psnr(
    images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, peak: float = 255.0
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio over all channels, dB; at most `EQUAL`. Values in [0, peak]."""
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return (20 * torch.log10(torch.tensor(peak)) - 10 * torch.log10(error.clamp_min(1e-12))).clamp(max=EQUAL)


def luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """RGB in [0, 255] to Y in [16, 235] (ITU-R BT.601), which super-resolution is compared in."""
    weights = images.new_tensor([65.481, 128.553, 24.966]).reshape(1, 3, 1, 1)
    return 16 + (weights * images / 255).sum(1, keepdim=True)


def psnr_y(
    images: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], *, border: int
) -> Float[Tensor, " b"]:
    """PSNR of the luma of RGB images in [0, 255], `border` pixels from each edge left out, dB."""
    inner = (..., slice(border, -border or None), slice(border, -border or None))
    return psnr(luma(images)[inner], luma(reference)[inner])
