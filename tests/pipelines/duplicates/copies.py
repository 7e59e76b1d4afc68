"""Emoji and what photographs go through: the twins that deduplication is measured on."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ARCHIVE = Path(__file__).parents[3] / "pipelines/data/emoji3d.zip"


def emoji(half: int, count: int | None = None) -> Iterator[tuple[str, Image.Image]]:
    """(name, RGB picture of about 256 px on white) of one half of the emoji."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
        mine = [name for name in names if hashlib.sha256(name.encode()).digest()[-1] % 2 == half]
        for name in mine[:count]:
            with Image.open(io.BytesIO(archive.read(name))) as file:
                image = file.convert("RGBA")
            ground = Image.new("RGBA", image.size, "white")
            ground.alpha_composite(image)
            yield Path(name).stem, ground.convert("RGB")


def _resized(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    scale = draw.uniform(0.4, 1.6)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """90 % of either side, anywhere."""
    width, height = round(image.width * 0.9), round(image.height * 0.9)
    left = int(draw.integers(0, image.width - width + 1))
    top = int(draw.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _recompressed(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=40)
    return Image.open(sink).convert("RGB")


def _mirrored(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(image)


def _recoloured(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Anywhere on the circle of hues, at least 14 degrees away."""
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += np.uint8(draw.integers(10, 246))
    return Image.fromarray(pixels, "HSV").convert("RGB")


COPIES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "resized": _resized,
    "cropped": _cropped,
    "recompressed": _recompressed,
    "mirrored": _mirrored,
    "recoloured": _recoloured,
}


def png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=1)
    return sink.getvalue()
