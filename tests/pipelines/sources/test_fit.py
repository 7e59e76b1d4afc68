"""Resizing and encoding, against Pillow's own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.sources.decode import Picture, decode
from pipelines.sources.fit import Resample, Resize, decoded_scale, encode, fit, is_changed
from tests.pipelines.sources import corpus


def picture(width: int, height: int, mode: str = "RGB") -> Picture:
    gradient = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return Picture(Image.fromarray(gradient).convert(mode), width, height, "png", True)


@pytest.mark.parametrize("size", [(40, 40), (80, 40), (40, 90), (7, 300), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "fit", "pad"])
def test_samples_are_square(size: tuple[int, int], resize) -> None:
    image, changed = fit(picture(*size), size=40, resize=resize, background="#102030")
    assert image.size == (40, 40)
    assert changed == (size != (40, 40))


@pytest.mark.parametrize("resample", ["lanczos", "area"])
@pytest.mark.parametrize("resize", ["crop", "fit", "pad"])
def test_samples_are_of_the_size_whatever_the_shape(resize: Resize, resample: Resample) -> None:
    for width in (1, 7, 48, 64, 131):
        for height in (1, 9, 32, 48, 200):
            for size in ((48, 32), (32, 64), (64, 64)):
                image, changed = fit(
                    picture(width, height), size=size, resize=resize, background="#000000", resample=resample
                )
                assert image.size == size
                assert changed == ((width, height) != size)


def test_a_wide_size_is_cut_from_the_middle() -> None:
    tall = picture(30, 90)
    image, _ = fit(tall, size=(30, 20), resize="crop", background="#000000")
    assert np.array_equal(np.asarray(image), np.asarray(tall.image)[35:55])
    inside = np.asarray(fit(tall, size=(60, 30), resize="fit", background="#ff0000")[0])
    assert (inside == [255, 0, 0]).all(-1).sum() == 60 * 30 - 10 * 30


def covered(pixels: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Each new pixel the mean of the old ones under it, by exact area."""
    for axis, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        edges = np.linspace(low, high, size + 1)
        old = np.arange(pixels.shape[axis])
        weights = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
        weights = weights.clip(0) / weights.clip(0).sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
    return pixels


def test_area_after_scaled_decoding_is_area_after_full_decoding() -> None:
    """Median PSNR above 40 dB, all above 30, on pictures as smooth as photographs, none decoded in full."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(24):
        width, height = (int(side) for side in draw.integers(256, 513, 2))
        # Noise whose spectrum falls with the frequency, as that of photographs does: by some two powers.
        noise = np.fft.rfft2(draw.normal(size=(height, width, 3)), axes=(0, 1))
        away = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1e-3
        noise = np.fft.irfft2(
            noise / away[:, :, None] ** draw.uniform(1.4, 2.2), (height, width), axes=(0, 1)
        )
        values = (128 + 50 * noise / noise.std()).clip(0, 255).astype(np.uint8)
        options = {"subsampling": int(draw.integers(0, 3)), "quality": int(draw.integers(75, 96))}
        data = corpus.save(Image.fromarray(values), "JPEG", **options)
        limits = {"background": "#ffffff", "max_bytes": 10**7, "max_pixels": 10**7}
        whole = decode(data, **limits)
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        wanted = covered(np.asarray(whole.image, float), (left, top, left + side, top + side), 96)
        scale = decoded_scale(width, height, size=96, resize="crop", resample="area")
        small = decode(data, **limits, smallest=round(scale * side))
        assert small.image.width <= -(-width // 2)
        image, _ = fit(small, size=96, resize="crop", background="#ffffff", resample="area")
        error = (np.asarray(image, float) - wanted) ** 2
        found.append(10 * np.log10(255**2 / error.mean()))
    assert np.median(found) >= 40
    assert min(found) >= 30


def test_a_picture_decoded_small_is_a_changed_one() -> None:
    data = corpus.save(corpus.scene(2, (256, 256)), "JPEG")
    small = decode(data, background="#ffffff", max_bytes=10**6, max_pixels=10**6, smallest=64)
    assert small.image.size == (64, 64)
    image, changed = fit(small, size=64, resize="crop", background="#ffffff", resample="area")
    assert image.size == (64, 64)
    assert changed
    assert is_changed(256, 256, size=64, resize="crop")
    assert not is_changed(256, 256, size=(256, 256), resize="crop")


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


def test_jpg_is_near_without_subsampling_and_repeats() -> None:
    for mode in ("RGB", "L"):
        image = corpus.scene(4, (64, 48)).convert(mode)
        data = encode(image, "jpg", quality=95)
        assert data == encode(image, "jpg", quality=95)
        found = Image.open(io.BytesIO(data))
        assert (found.mode, found.size) == (mode, image.size)
        assert np.abs(np.asarray(found).astype(int) - np.asarray(image).astype(int)).mean() < 1.5
        assert len(encode(image, "jpg", quality=50)) < len(data)
