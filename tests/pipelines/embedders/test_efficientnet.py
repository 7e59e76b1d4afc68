from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.embedders import EfficientNetImages


def test_vectors_tell_images_apart_and_not_their_company() -> None:
    ramp = np.arange(48, dtype=np.uint8)[None, :, None] * np.full((48, 1, 3), 5, np.uint8)
    images = [Image.fromarray(a) for a in (ramp, ramp.transpose(1, 0, 2).copy(), np.minimum(ramp + 2, 255))]
    embedder = EfficientNetImages().build(micro_batch=2)
    found = embedder.encode(images)
    assert found.shape == (3, embedder.width)
    assert embedder.encode(images[2:]).tobytes() == found[2:].tobytes()
    similar = found.astype(float) @ found.astype(float).T
    assert np.diag(similar) == pytest.approx(1, abs=2e-3)
    assert similar[0, 2] > similar[0, 1] + 0.05
