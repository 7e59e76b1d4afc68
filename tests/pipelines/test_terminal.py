"""Half-block pictures: every pixel's colour arrives in its half of its cell."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.text import Text

from pipelines import terminal

CONSOLE = Console(color_system="truecolor", width=80)


def colors(lines: list[Text]) -> list[list[tuple[int, ...] | None]]:
    """The pixels that a terminal would show, two rows a line."""
    pixels: list[list[tuple[int, ...] | None]] = []
    for line in lines:
        upper: list[tuple[int, ...] | None] = []
        lower: list[tuple[int, ...] | None] = []
        for n, character in enumerate(line.plain):
            style = line.get_style_at_offset(CONSOLE, n)
            front, back = (
                (tuple(c.triplet) if c and c.triplet else None) for c in (style.color, style.bgcolor)
            )
            halves = {"▀": (front, back), "▄": (back, front), " ": (None, None)}[character]
            upper.append(halves[0])
            lower.append(halves[1])
        pixels += [upper, lower]
    return pixels


def test_each_pixel_keeps_its_colour_and_place() -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    shown = colors(terminal.half_blocks(array, columns=80))
    assert shown == [[tuple(int(v) for v in pixel) for pixel in line] for line in array]


def test_an_odd_last_row_and_transparent_pixels_leave_the_ground() -> None:
    array = np.full((3, 2, 4), 255, dtype=np.uint8)
    array[0, 0, 3] = 0
    white = (255, 255, 255)
    assert colors(terminal.half_blocks(array, columns=80)) == [
        [None, white],
        [white, white],
        [white, white],
        [None, None],
    ]


def test_pil_images_arrays_floats_and_files_are_the_same_picture() -> None:
    array = np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    pictures = [array, array / 255.0, Image.fromarray(array), file.getvalue()]
    shown = [colors(terminal.half_blocks(p, columns=80)) for p in pictures]
    assert all(s == shown[0] for s in shown)


@pytest.mark.parametrize(
    ("columns", "lines", "expected"), [(16, None, (16, 8)), (80, 4, (8, 4)), (80, None, (64, 32))]
)
def test_large_pictures_are_reduced_and_none_is_enlarged(
    columns: int, lines: int | None, expected: tuple[int, int]
) -> None:
    blocks = terminal.half_blocks(np.zeros((64, 64, 3), np.uint8), columns=columns, lines=lines)
    assert (blocks[0].cell_len, len(blocks)) == expected


def test_a_row_stays_within_its_columns_and_leaves_out_what_does_not_fit() -> None:
    pictures = [np.full((48, 48, 3), n, np.uint8) for n in range(16)]
    text = terminal.row(pictures, columns=80)
    widths = {line.cell_len for line in text.split("\n")}
    assert len(widths) == 1
    assert 70 <= widths.pop() <= 80
    assert len(terminal.row(pictures[:3], columns=80).split("\n")) == 13


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[h, w, 3 or 4\]"):
        terminal.half_blocks(np.zeros((4, 4), np.uint8), columns=8)
