"""Images of three sizes, as ingest's `buckets` gives them: 8 x 24, 16 x 16 and 24 x 8 px."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.arrays import to_npy
from pipelines.dataset import Dataset
from pipelines.models import SnapshotFolder
from pipelines.stages.encode import Encode
from tests.pipelines import tiny
from tests.pipelines.stages.making import made

SIZES = [(8, 24), (16, 16), (24, 8)]
COUNTS = [5, 14, 5]
"""Of the 24 training samples; two lots are smaller than a batch of 8."""


def size(n: int) -> tuple[int, int]:
    """Width and height of sample `n`; each split and shard has all three."""
    return SIZES[[1, 2, 1, 0, 1][n % 5]]


def picture(n: int) -> np.ndarray:
    """A bright square on a slope."""
    width, height = size(n)
    image = np.full((height, width, 3), 30, np.uint8) + np.arange(width, dtype=np.uint8)[None, :, None]
    image[n % 3 : n % 3 + 5, n % 3 : n % 3 + 5] = [40 * (n % 6), 255 - 30 * (n % 7), 120]
    return image


def statistics(**fields: Any) -> dict[str, Any]:
    counts = [[*one, count] for one, count in zip(SIZES, COUNTS, strict=True)]
    return {"resolution": 16, "sizes": counts, **fields}


def images(folder: Path) -> Dataset:
    def members(key: str, n: int) -> dict[str, bytes]:
        buffer = io.BytesIO()
        Image.fromarray(picture(n)).save(buffer, "PNG")
        return {"png": buffer.getvalue(), "cls": str(n % 3).encode()}

    def meta(n: int) -> dict[str, int]:
        return dict(zip(("width", "height"), size(n), strict=True))

    return tiny.dataset(folder, members, meta=meta, classes=tiny.CLASSES, statistics=statistics())


def latents(folder: Path, autoencoder: SnapshotFolder) -> Dataset:
    """Moments whose mean is the shrunken picture, so that there is something to learn; no size is in the
    index, as of a dataset that was made before it was said there."""

    def members(key: str, n: int) -> dict[str, bytes]:
        mean = picture(n)[::4, ::4, :2].transpose(2, 0, 1).astype(np.float16) / 255
        return {"moments.npy": to_npy(np.concatenate([mean, np.full_like(mean, 0.05)]))}

    said = {"mean": [0.3, 0.5], "std": [0.25, 0.25]}
    told = statistics(latents=said, shape=[2, 4, 4], autoencoder=autoencoder.digest())
    return tiny.dataset(folder, members, statistics=told)


def line(folder: Path) -> dict[str, Any]:
    """The inputs of a train stage, by field name."""
    given = {"images": images(folder / "images"), "autoencoder": tiny.autoencoder(folder / "autoencoder")}
    stage = Encode(images="images", autoencoder="vae", micro_batch=4)
    latents = made(stage, given, folder / "latents")
    return {**given, "latents": latents, "text": tiny.text(folder / "text")}
