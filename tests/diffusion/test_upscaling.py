from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.autoencoders.identity import IdentityAutoencoder
from diffusion.conditioning import Conditioning
from diffusion.latents import LatentStatistics
from diffusion.upscaling import Upscaling, enlarge, low_latents, residual_scale, shrink


def photo(size: int = 48) -> np.ndarray:
    """uint8 with edges, ramps and noise, in levels that no overshoot leaves (Pillow clips in between)."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    image = np.stack([2 * x, 2 * y, 70 * ((x // 5 + y // 7) % 2)], axis=-1)
    return (80 + image + draw.integers(0, 20, (size, size, 3))).astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def levels(image: torch.Tensor) -> np.ndarray:
    return ((image[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_both_ways_are_pillows_bicubic(factor: int) -> None:
    image = photo()
    small = Image.fromarray(image).resize((48 // factor, 48 // factor), Image.Resampling.BICUBIC)
    large = small.resize((48, 48), Image.Resampling.BICUBIC)
    assert np.abs(levels(shrink(tensor(image), factor)) - np.asarray(small)).max() <= 1
    assert np.abs(levels(enlarge(tensor(np.asarray(small)), factor)) - np.asarray(large)).max() <= 1


def test_small_images_have_whole_levels() -> None:
    small = (shrink(tensor(photo()), 2) + 1) * 127.5
    torch.testing.assert_close(small, small.round(), rtol=0, atol=1e-4)


def test_sides_that_do_not_shrink_are_refused() -> None:
    with pytest.raises(ValueError, match="48 x 48 px do not shrink by 5"):
        shrink(tensor(photo()), 5)


def test_residuals_have_unit_variance_and_come_back() -> None:
    latents = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    low = latents + torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [0.1, 0.5, 2.0]
    ).reshape(1, 3, 1, 1)
    upscaling = Upscaling(factor=2, noise=0.5, scale=residual_scale(latents, low))
    residual = upscaling.residual(latents, low)
    torch.testing.assert_close(residual.square().mean((0, 2, 3)), torch.ones(3))
    torch.testing.assert_close(upscaling.restore(residual, low), latents)
    assert Upscaling.from_json(upscaling.to_json()) == upscaling
    with pytest.raises(ValueError, match="nothing for an upscaler to learn"):
        residual_scale(latents, latents)


def test_the_condition_is_noised_at_its_level() -> None:
    upscaling = Upscaling(factor=2, noise=0.5, scale=(1.0,))
    low, noise = torch.ones(3, 1, 4, 4), torch.full((3, 1, 4, 4), 5.0)
    told = upscaling.tell(Conditioning(), low, noise, torch.tensor([0.0, 0.25, 0.5]))
    assert told.low is not None
    assert told.low[:, 0, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert len(told) == 3
    # a small image is never dropped: without caption and class there is nothing to guide by
    assert told.empty
    assert told.null().low is told.low


def test_a_condition_keeps_its_small_image_beside_a_class() -> None:
    label = Conditioning(label=torch.tensor([0, 1]), classes=2)
    told = Upscaling(factor=2, noise=0.5, scale=(1.0,)).tell(
        label, torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), torch.zeros(2)
    )
    both = told.cat(told.null())
    assert both.low is not None
    assert told.low is not None
    assert torch.equal(both.low, torch.cat([told.low, told.low]))
    assert both.label is not None
    assert both.label.tolist() == [0, 1, 2, 2]
    with pytest.raises(ValueError, match="low and level go together"):
        Conditioning(low=torch.zeros(1, 1, 2, 2))


def test_low_latents_are_the_enlarged_image_whitened() -> None:
    small = shrink(tensor(photo()), 2)
    statistics = LatentStatistics(mean=(0.1, 0.2, 0.3), std=(0.5, 2.0, 1.0))
    seen = low_latents(small, 2, IdentityAutoencoder(), statistics)
    torch.testing.assert_close(statistics.unwhiten(seen), enlarge(small, 2))
