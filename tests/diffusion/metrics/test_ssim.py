from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffusion.metrics.ssim import ssim


def images(seed: int = 0) -> torch.Tensor:
    chance = np.random.default_rng(seed)
    smooth = gaussian_filter(chance.uniform(0, 255, (2, 3, 23, 31)), (0, 0, 2, 3), mode="wrap")
    return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth) * 255).float()


def by_definition(x: np.ndarray, y: np.ndarray, peak: float) -> float:
    """Wang et al., 2004, equations 14 to 16 and 13, window by window."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    found = []
    for channel in range(len(x)):
        for i in range(x.shape[1] - 10):
            for j in range(x.shape[2] - 10):
                a, b = (z[channel, i : i + 11, j : j + 11].astype(np.float64) for z in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                variance_a = (window * (a - mean_a) ** 2).sum()
                variance_b = (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                found.append(top / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize("peak", [255.0, 2.0])
def test_it_is_the_definition(peak: float) -> None:
    x = images() * peak / 255
    y = (x + 0.08 * peak * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, peak)
    truth = [by_definition(a.numpy(), b.numpy(), peak) for a, b in zip(x, y, strict=True)]
    assert ssim(y, x, peak=peak).tolist() == pytest.approx(truth, abs=1e-9)


def test_equal_images_have_one_and_it_falls_with_distortion() -> None:
    x = images()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found = [ssim(x + scale * noise, x)[0].item() for scale in (0.0, 5.0, 20.0, 80.0)]
    assert found[0] == pytest.approx(1, abs=1e-12)
    assert found == sorted(found, reverse=True)
    assert ssim(x, 255 - x)[0].item() < 0  # opposed in structure


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))
