"""Grids of images with labels, as PNG bytes: what MLflow, the report and the terminal show.

The ground is transparent and the letters a middle grey, so that one file reads on light and on dark pages.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

INK = (122, 127, 136, 255)
GAP = 4


def grid(
    rows: Sequence[Sequence[Image | None]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    cell: int = 96,
    label_lines: int = 3,
) -> bytes:
    """A PNG of `rows` of images, each fitted into a square of `cell` px; None leaves a place empty.

    Small images are enlarged by a whole factor with hard pixels (nothing is made up), large ones reduced.
    Labels are wrapped to the width of a column and cut after `label_lines` lines. Equal arguments give equal
    bytes.
    Raises ValueError without any image, or with more labels than rows or columns.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError("A grid needs at least one image.")
    if len(row_labels) > len(rows) or len(column_labels) > columns:
        raise ValueError(
            f"{len(row_labels)} row and {len(column_labels)} column labels for {len(rows)} rows and "
            f"{columns} columns of images."
        )
    font = ImageFont.load_default(size=12)
    line = 15
    left = min(max((_width(font, text) for text in row_labels), default=0), 160) + (8 if row_labels else 0)
    heads = [_wrap(font, text, cell, label_lines) for text in column_labels]
    top = line * max((len(head) for head in heads), default=0) + (4 if heads else 0)
    size = (left + columns * (cell + GAP) - GAP, top + len(rows) * (cell + GAP) - GAP)
    canvas = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for n, head in enumerate(heads):
        for m, text in enumerate(head):
            x = left + n * (cell + GAP) + (cell - _width(font, text)) // 2
            draw.text((x, top - 4 - line * (len(head) - m)), text, font=font, fill=INK)
    for n, text in enumerate(row_labels):
        wrapped = _wrap(font, text, max(left - 8, 1), max(cell // line, 1))
        y = top + n * (cell + GAP) + (cell - line * len(wrapped)) // 2
        for m, part in enumerate(wrapped):
            draw.text((0, y + m * line), part, font=font, fill=INK)
    for n, row in enumerate(rows):
        for m, image in enumerate(row):
            if image is not None:
                fitted = _fit(image, cell)
                x = left + m * (cell + GAP) + (cell - fitted.width) // 2
                y = top + n * (cell + GAP) + (cell - fitted.height) // 2
                canvas.paste(fitted, (x, y))
    return png(canvas)


def png(image: Image) -> bytes:
    """An image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def encode(image: Any, suffix: str) -> bytes:
    """uint8 [h, w, 3] as a file without loss, `png` or `webp`; equal pixels give equal bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    if suffix == "webp":
        Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=100, method=4)
    else:
        Image.fromarray(image).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def decode(data: bytes) -> Image:
    """An image file's bytes (PNG, JPEG, WebP) as an RGB image."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _fit(image: Image, cell: int) -> Image:
    from PIL import Image as Images

    longest = max(image.size)
    if longest <= cell:
        factor = cell // longest
        if factor > 1:
            image = image.resize((image.width * factor, image.height * factor), Images.Resampling.NEAREST)
        return image.convert("RGB")
    size = (max(round(image.width * cell / longest), 1), max(round(image.height * cell / longest), 1))
    return image.convert("RGB").resize(size, Images.Resampling.LANCZOS)


def _width(font: Any, text: str) -> int:
    return int(font.getlength(text) + 0.999)


def _wrap(font: Any, text: str, width: int, lines: int) -> list[str]:
    """`text` broken at blanks to `width` px; what does not fit ends in an ellipsis."""
    wrapped: list[str] = []
    for word in text.split():
        if wrapped and _width(font, f"{wrapped[-1]} {word}") <= width:
            wrapped[-1] += f" {word}"
        else:
            wrapped.append(word)
    cut = wrapped[:lines]
    if len(wrapped) > lines:
        cut[-1] += "…"
    return [_shorten(font, text, width) for text in cut]


def _shorten(font: Any, text: str, width: int) -> str:
    if _width(font, text) <= width:
        return text
    text = text.rstrip("…")
    while text and _width(font, text + "…") > width:
        text = text[:-1]
    return text + "…"
