from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.arrays import from_npy, pixels, to_npy


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float16).reshape(2, 3, 4),
        np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float64(3.5).reshape(()),
        np.empty((0, 4), np.float16),
    ],
)
def test_numpy_reads_what_is_written(array: np.ndarray) -> None:
    data = to_npy(array)
    found = np.load(io.BytesIO(data), allow_pickle=False)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(from_npy(data), array)
    assert to_npy(array.copy()) == data


def test_pickles_are_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        from_npy(buffer.getvalue())


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_pixels_of_an_encoded_image(form: str) -> None:
    truth = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(truth).save(buffer, form, lossless=True)
    np.testing.assert_array_equal(pixels(buffer.getvalue()), truth)
    grey = io.BytesIO()
    Image.fromarray(truth[..., 0]).save(grey, form, lossless=True)
    np.testing.assert_array_equal(pixels(grey.getvalue()), np.repeat(truth[..., :1], 3, axis=2))
