"""Pictures in a terminal: each character cell shows two pixels, the upper half-block over its background."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from rich.text import Text

    Picture = Image | np.ndarray[Any, Any] | bytes
    """A PIL image, an array [h, w, 3 or 4] of uint8 or of floats in [0, 1], or an image file's bytes."""

UPPER, LOWER = "▀", "▄"
GAP = 2


def row(pictures: Sequence[Picture], *, columns: int, lines: int | None = None) -> Text:
    """Pictures side by side, each as large as `columns` cells for all and `lines` cells of height allow.

    A picture is never enlarged. Where not all fit in 8 cells of width each, the last are left out.
    """
    from rich.text import Text

    fitting = max(1, min(len(pictures), (columns + GAP) // (8 + GAP)))
    width = max(1, (columns - GAP * (fitting - 1)) // fitting)
    blocks = [half_blocks(picture, columns=width, lines=lines) for picture in pictures[:fitting]]
    height = max((len(block) for block in blocks), default=0)
    joined = Text()
    for n in range(height):
        for m, block in enumerate(blocks):
            joined.append(" " * GAP if m else "")
            joined.append_text(block[n] if n < len(block) else Text(" " * block[0].cell_len))
        joined.append("\n" if n < height - 1 else "")
    return joined


def half_blocks(picture: Picture, *, columns: int, lines: int | None = None) -> list[Text]:
    """One `Text` a line of cells; transparent pixels show the terminal's own ground."""
    import numpy as np
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    image = _fitted(_image(picture), columns, lines)
    pixels: list[list[tuple[int, int, int, int]]] = np.asarray(image).tolist()
    width, height = image.size

    def color(x: int, y: int) -> Color | None:
        if y >= height:
            return None
        red, green, blue, alpha = pixels[y][x]
        return Color.from_rgb(red, green, blue) if alpha >= 128 else None

    cells: list[Text] = []
    for y in range(0, height, 2):
        line = Text()
        for x in range(width):
            upper, lower = color(x, y), color(x, y + 1)
            if upper:
                line.append(UPPER, Style(color=upper, bgcolor=lower))
            else:
                line.append(LOWER if lower else " ", Style(color=lower))
        cells.append(line)
    return cells


def _image(picture: Picture) -> Image:
    """As an RGBA image."""
    import numpy as np
    from PIL import Image

    if isinstance(picture, bytes):
        return Image.open(io.BytesIO(picture), formats=("PNG", "WEBP", "JPEG")).convert("RGBA")
    if isinstance(picture, Image.Image):
        return picture.convert("RGBA")
    if picture.ndim != 3 or picture.shape[2] not in (3, 4):
        raise ValueError(f"A picture has the shape [h, w, 3 or 4], not {list(picture.shape)}.")
    if picture.dtype != np.uint8:
        picture = np.rint(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)
    return Image.fromarray(picture).convert("RGBA")


def _fitted(image: Image, columns: int, lines: int | None) -> Image:
    """Reduced to at most `columns` x 2 `lines` pixels."""
    from PIL import Image

    scale = min(1.0, columns / image.width, 2 * lines / image.height if lines else 1.0)
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BOX)
