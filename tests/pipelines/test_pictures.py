from __future__ import annotations

import io

import pytest
from PIL import Image

from pipelines import pictures


def solid(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_every_image_lies_in_its_place():
    colours = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (9, 9, 9)]]
    data = pictures.grid([[solid(c) for c in row] for row in colours], cell=16)
    image = Image.open(io.BytesIO(data))
    assert image.size == (2 * 16 + pictures.GAP, 2 * 16 + pictures.GAP)
    for n, row in enumerate(colours):
        for m, colour in enumerate(row):
            assert image.getpixel((m * (16 + pictures.GAP) + 8, n * (16 + pictures.GAP) + 8)) == (
                *colour,
                255,
            )
    assert image.getpixel((17, 8)) == (0, 0, 0, 0)  # the gap lets the page show through


def test_small_images_are_enlarged_without_new_colours():
    checker = Image.new("RGB", (2, 2))
    checker.putdata([(0, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 0)])
    image = Image.open(io.BytesIO(pictures.grid([[checker]], cell=32)))
    assert {colour for _, colour in image.getcolors()} == {(0, 0, 0, 255), (255, 255, 255, 255)}


def test_labels_take_room_and_are_cut_to_it():
    image = solid((1, 2, 3))
    plain = Image.open(io.BytesIO(pictures.grid([[image, image]], cell=64)))
    long = "an uncommonly_long_word_that_no_column_can_hold " * 5
    labelled = Image.open(
        io.BytesIO(pictures.grid([[image, image]], cell=64, column_labels=[long, "b"], row_labels=["real"]))
    )
    assert labelled.height == plain.height + 3 * 15 + 4
    assert labelled.width > plain.width
    # nothing of the first column's label runs into the second column
    left = labelled.width - 64
    assert all(labelled.getpixel((left - 2, y))[3] == 0 for y in range(3 * 15))


def test_an_image_that_is_not_square_keeps_its_proportions():
    image = Image.open(io.BytesIO(pictures.grid([[solid((5, 6, 7), (40, 20))]], cell=20)))
    assert image.getpixel((10, 10)) == (5, 6, 7, 255)
    assert image.getpixel((10, 2)) == (0, 0, 0, 0)


def test_equal_arguments_give_equal_bytes_and_empty_places_are_left():
    rows = [[solid((1, 1, 1)), None]]
    assert pictures.grid(rows, row_labels=["a"]) == pictures.grid(rows, row_labels=["a"])
    assert pictures.decode(pictures.png(solid((3, 4, 5)))).getpixel((0, 0)) == (3, 4, 5)


@pytest.mark.parametrize("arguments", [{"rows": []}, {"rows": [[None]], "row_labels": ["a", "b"]}])
def test_mistakes_are_named(arguments):
    with pytest.raises(ValueError, match="image"):
        pictures.grid(**arguments)
