from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage
from sklearn.datasets import load_sample_image

from pipelines.scorers import Sharpness, Subject
from pipelines.scorers.sharpness import laplacian


def subject(image: Image.Image) -> Subject:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Subject(key="k", data=buffer.getvalue())


def scored(image: Image.Image, **fields: object) -> dict[str, float]:
    (found,) = Sharpness(**fields).build().scores([subject(image)])
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).crop((100, 0, 500, 400))


def test_it_is_the_variance_of_scipys_laplacian(photograph: Image.Image) -> None:
    levels = np.asarray(photograph.convert("L"))
    truth = ndimage.laplace(levels.astype(np.float64))[1:-1, 1:-1]
    np.testing.assert_array_equal(laplacian(levels), truth)
    found = scored(photograph, size=400)
    assert found["sharpness"] == pytest.approx(truth.var(), rel=1e-6)
    assert found["contrast"] == pytest.approx(levels.std(), rel=1e-6)
    _, counts = np.unique(levels, return_counts=True)
    shares = counts / counts.sum()
    assert found["entropy"] == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-6)


def test_blur_lowers_it_and_the_rest_says_what_is_there(photograph: Image.Image) -> None:
    blurred = [photograph.filter(ImageFilter.GaussianBlur(r)) for r in (0, 1, 2, 4)]
    values = [scored(image)["sharpness"] for image in blurred]
    assert values == sorted(values, reverse=True)
    assert values[0] > 20 * values[-1]
    flat = scored(Image.new("RGB", (64, 64), (10, 200, 30)))
    assert flat == {"sharpness": 0, "contrast": 0, "entropy": 0}
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert scored(checks, size=64)["entropy"] == 1


def test_images_are_compared_at_one_size(photograph: Image.Image) -> None:
    half = photograph.resize((200, 200), Image.Resampling.BICUBIC)
    large, small = scored(photograph, size=200), scored(half, size=200)
    assert small["sharpness"] == pytest.approx(large["sharpness"], rel=0.01)
    # One that has to be enlarged has less detail than it seems.
    tiny = photograph.resize((50, 50), Image.Resampling.BICUBIC)
    assert scored(tiny, size=200)["sharpness"] < large["sharpness"] / 4


def test_company_changes_nothing(photograph: Image.Image) -> None:
    wide = photograph.resize((300, 100))
    scorer = Sharpness(size=64, name="seen").build()
    together = scorer.scores([subject(wide), subject(photograph)])
    assert together == [*scorer.scores([subject(wide)]), *scorer.scores([subject(photograph)])]
    assert list(together[0]) == ["seen_sharpness", "seen_contrast", "seen_entropy"]
