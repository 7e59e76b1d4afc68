"""Resizing and encoding, against Pillow's own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.sources.decode import Picture
from pipelines.sources.fit import encode, fit


def picture(width: int, height: int, mode: str = "RGB") -> Picture:
    gradient = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return Picture(Image.fromarray(gradient).convert(mode), width, height, "png", True)


@pytest.mark.parametrize("size", [(40, 40), (80, 40), (40, 90), (7, 300), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "fit", "pad"])
def test_samples_are_square(size: tuple[int, int], resize) -> None:
    image, changed = fit(picture(*size), size=40, resize=resize, background="#102030")
    assert image.size == (40, 40)
    assert changed == (size != (40, 40))


def test_crop_takes_the_middle() -> None:
    wide = picture(90, 30)
    image, _ = fit(wide, size=30, resize="crop", background="#000000")
    assert np.array_equal(np.asarray(image), np.asarray(wide.image)[:, 30:60])


def test_pad_enlarges_nothing_and_fit_fills() -> None:
    small = picture(20, 10)
    padded = np.asarray(fit(small, size=40, resize="pad", background="#ff0000")[0])
    assert np.array_equal(padded[15:25, 10:30], np.asarray(small.image))
    assert (padded == [255, 0, 0]).all(-1).sum() == 40 * 40 - 200
    fitted = np.asarray(fit(small, size=40, resize="fit", background="#ff0000")[0])
    assert (fitted == [255, 0, 0]).all(-1).sum() == 40 * 20


def test_a_coloured_background_gives_gray_pictures_colour() -> None:
    assert fit(picture(20, 10, "L"), size=40, resize="fit", background="#ff0000")[0].mode == "RGB"
    assert fit(picture(20, 10, "L"), size=40, resize="fit", background="#808080")[0].mode == "L"


@pytest.mark.parametrize("form", ["webp", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_encoding_is_lossless_and_repeats(form, mode: str) -> None:
    image = picture(33, 21, mode).image
    data = encode(image, form)
    assert encode(image, form) == data
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), np.asarray(image.convert("RGB"))
    )
