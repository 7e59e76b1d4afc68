from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from diffusion.config import LowResolutionConfig
from diffusion.upscaling import shrink
from pipelines.training.tasks.rows import Rows
from pipelines.training.tasks.small_images import SmallImages
from tests.pipelines import tiny


def made(folder: Path, *, crop: int | None = 8) -> tuple[SmallImages, torch.Tensor]:
    """The images of a line as conditions, and as the latents that they are."""
    rows = Rows({"originals": tiny.images(folder)}, split="train", required={"originals": "image"})
    images = SmallImages(LowResolutionConfig(factor=2, noise=0.4, crop=crop), rows, factor=1, budget=10**6)
    latents = torch.from_numpy(images.images[np.arange(len(rows))]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, latents


def test_latents_and_small_image_are_of_the_same_piece(tmp_path: Path) -> None:
    images, latents = made(tmp_path)
    positions, indices = np.arange(200, 224), np.arange(24)
    flip = np.arange(24) % 2 == 1
    mirrored = torch.where(torch.from_numpy(flip)[:, None, None, None], latents.flip(-1), latents)
    pieces, share = images.cut(mirrored, 7, positions, indices, flip=flip)
    assert pieces.shape == (24, 3, 8, 8)
    torch.testing.assert_close(shrink(pieces, 2), share.small)
    # pieces begin everywhere on the grid of whole small pixels
    corners = set(images._places(7, np.arange(2000)))
    assert corners == {(y, x) for y in range(0, 9, 2) for x in range(0, 9, 2)}


def test_a_sample_is_a_function_of_its_position(tmp_path: Path) -> None:
    images, latents = made(tmp_path)
    positions, flip = np.arange(40, 48), np.zeros(8, bool)
    pieces, whole = images.cut(latents[:8], 7, positions, np.arange(8), flip=flip)
    again, part = images.cut(latents[3:5], 7, positions[3:5], np.arange(3, 5), flip=flip[:2])
    assert torch.equal(again, pieces[3:5])
    for name in ("small", "noise", "level"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[3:5])


def test_levels_are_even_up_to_the_highest(tmp_path: Path) -> None:
    images, latents = made(tmp_path, crop=None)
    positions = np.arange(2000)
    _, share = images.cut(
        latents[:1].expand(2000, -1, -1, -1),
        7,
        positions,
        np.zeros(2000, np.int64),
        flip=np.zeros(2000, bool),
    )
    assert 0 < share.level.min() < 0.01
    assert 0.39 < share.level.max() < 0.4
    # three standard errors of the mean of a uniform distribution
    assert abs(share.level.mean().item() - 0.2) < 3 * 0.4 / 12**0.5 / 2000**0.5
