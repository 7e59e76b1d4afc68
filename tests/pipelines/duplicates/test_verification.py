"""The second look: copies agree, and pictures that are only alike do not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines.duplicates.features import SIDE as LIGHT
from pipelines.duplicates.features import look_features
from pipelines.duplicates.verification import BYTES, SIDE, agreement, thumbnail
from tests.pipelines.duplicates.copies import COPIES, emoji


def seen(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.frombuffer(thumbnail(i), np.uint8).reshape(2, SIDE, SIDE) for i in images])


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    return [image for _, image in emoji(1, 50)]


@pytest.mark.parametrize("kind", COPIES)
def test_copies_agree(originals: list[Image.Image], kind: str) -> None:
    copies = [COPIES[kind](image, np.random.default_rng(n)) for n, image in enumerate(originals)]
    assert (agreement(seen(originals), seen(copies)) >= 0.9).sum() >= 49


def test_others_do_not(originals: list[Image.Image]) -> None:
    others = seen(originals)
    assert agreement(others, np.roll(others, 1, axis=0)).max() < 0.5


def clock(hour: int) -> Image.Image:
    image = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 236, 236), fill="#cc3344", outline="black", width=8)
    angle = np.pi * hour / 6
    draw.line((128, 128, 128 + 70 * np.sin(angle), 128 - 70 * np.cos(angle)), fill="white", width=12)
    return image


def test_the_worst_place_decides() -> None:
    """Clocks correlate as a whole, and one hand does not."""
    left, right = seen([clock(2)] * 4), seen([clock(2), clock(3), clock(5), clock(8)])
    whole = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(left, right, strict=True)]
    found = agreement(left, right)
    assert min(whole) > 0.93
    assert found[0] > 0.999
    assert found[1:].max() < 0.5


def test_pictures_without_shape_agree_with_nothing() -> None:
    flat = seen([Image.new("RGB", (50, 50), "red")] * 2)
    assert agreement(flat, flat).tolist() == [0, 0]
    assert agreement(flat[:0], flat[:0]).shape == (0,)


def test_company_changes_nothing(originals: list[Image.Image]) -> None:
    left = seen(originals)
    right = seen([COPIES["cropped"](image, np.random.default_rng(n)) for n, image in enumerate(originals)])
    whole = agreement(left, right)
    alone = [agreement(left[n : n + 1], right[n : n + 1])[0] for n in (0, 17, 49)]
    assert np.array_equal(alone, whole[[0, 17, 49]])


def test_what_is_kept_of_a_picture_knows_no_hue(originals: list[Image.Image]) -> None:
    for n, image in enumerate(originals[:5]):
        kept = look_features(image)
        turned = look_features(COPIES["recoloured"](image, np.random.default_rng(n)))
        assert len(kept.thumbnail) == BYTES
        assert len(kept.lightness) == LIGHT**2
        for a, b in ((kept.thumbnail, turned.thumbnail), (kept.lightness, turned.lightness)):
            differ = np.frombuffer(a, np.uint8).astype(int) - np.frombuffer(b, np.uint8)
            assert np.abs(differ).mean() < 1
