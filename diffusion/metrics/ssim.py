"""How alike the structure of two images is, window by window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

WINDOW = 11
"""Side of the Gaussian window, px: images must have as many."""
SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def ssim(
    images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, peak: float = 255.0
) -> Float64[Tensor, " b"]:
    """Structural similarity (Wang et al., 2004, equation 13): mean over windows that lie wholly in the image,
    and over channels; 1 for equal images. Values in [0, peak].

    Raises:
        ValueError: a side has fewer than `WINDOW` pixels.
    """
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"SSIM takes images of at least {WINDOW} px a side; these have {tuple(images.shape[-2:])}."
        )
    x, y = images.double(), reference.double()
    # Moments of all windows at once: a convolution along each side.
    moments = _windowed(torch.cat([x, y, x * x, y * y, x * y], dim=1))
    mean_x, mean_y, square_x, square_y, product = moments.chunk(5, dim=1)
    variance_x, variance_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _windowed(values: Float64[Tensor, "b c h w"]) -> Float64[Tensor, "b c i j"]:
    places = torch.arange(WINDOW, dtype=torch.float64, device=values.device) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    flat = values.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, weights.reshape(1, 1, -1, 1)), weights.reshape(1, 1, 1, -1))
    return flat[:, 0].unflatten(0, values.shape[:2])
