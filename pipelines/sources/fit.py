"""From a picture to the sample's bytes: one size, one format."""

from __future__ import annotations

import io
from typing import Any, Literal

from pipelines.sources.decode import Picture

Resize = Literal["crop", "fit", "pad", "none"]
Format = Literal["webp", "png"]


def fit(picture: Picture, *, size: int, resize: Resize, background: str) -> tuple[Any, bool]:
    """The picture at `size` by `size` px, and whether that changed it.

    crop: the shorter side is brought to `size`, the middle kept. fit: the longer side is brought to `size`,
    the rest is background. pad: as fit, but never enlarged. none: as it is. Lanczos, on what is already flat.
    """
    from PIL import Image, ImageColor

    image = picture.image
    if resize == "none" or image.size == (size, size):
        return image, False
    width, height = image.size
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0), True
    scale = size / max(width, height)
    if resize == "pad":
        scale = min(scale, 1.0)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    if inner != image.size:
        image = image.resize(inner, Image.Resampling.LANCZOS, reducing_gap=3.0)
    red, green, blue, *_ = ImageColor.getrgb(background)
    if image.mode == "L" and not red == green == blue:
        image = image.convert("RGB")
    ground = Image.new(image.mode, (size, size), red if image.mode == "L" else (red, green, blue))
    ground.paste(image, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return ground, True


def encode(image: Any, form: Format) -> bytes:
    """Lossless bytes without any metadata; equal for equal pixels and codec versions."""
    from PIL import Image

    # A copy from the pixels alone: nothing that the original carried (place, owner, profile) comes along.
    plain = Image.frombytes(image.mode, image.size, image.tobytes())
    sink = io.BytesIO()
    if form == "webp":
        # Method 2 takes a quarter of the time of 4 and 4 % more bytes on 48 px drawings.
        plain.save(sink, "WEBP", lossless=True, method=2, quality=75)
    else:
        plain.save(sink, "PNG", compress_level=6)
    return sink.getvalue()


def codecs() -> dict[str, str | None]:
    """Versions that decide encoded bytes, for the record."""
    import PIL
    from PIL import features

    names = {"webp": "webp", "zlib": "zlib", "jpeg": "jpg", "lcms": "littlecms2"}
    return {"pillow": PIL.__version__} | {name: features.version(feature) for name, feature in names.items()}
