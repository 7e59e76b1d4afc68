"""Decoding: one verdict for whatever bytes come, before much is paid for it."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipelines.sources.decode import REASONS, Picture, Reject, decode
from tests.pipelines.sources import corpus

LIMITS = {"background": "#ffffff", "max_bytes": 2_000_000, "max_pixels": 1_000_000}
IMAGE = corpus.scene(3, (64, 48))


def verdict(data: bytes) -> Picture | str:
    try:
        return decode(data, **LIMITS)
    except Reject as reject:
        return str(reject)


def test_damaged_bytes_are_pictures_or_rejects() -> None:
    """Bits flipped, pieces cut out, doubled and swapped: never any other exception."""
    draw = random.Random(0)
    forms = [
        corpus.save(IMAGE, "JPEG"),
        corpus.save(IMAGE, "JPEG", progressive=True),
        corpus.save(IMAGE, "PNG"),
        corpus.save(IMAGE.convert("P"), "PNG"),
        corpus.save(IMAGE, "WEBP"),
        corpus.save(IMAGE, "WEBP", lossless=True),
    ]
    seen = set()
    for n in range(600):
        data = bytearray(forms[n % len(forms)])
        place, length = draw.randrange(len(data)), draw.randrange(1, 60)
        match draw.randrange(4):
            case 0:
                for _ in range(draw.randrange(1, 20)):
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[place : place + length]
            case 3:
                del data[place:]
        found = verdict(bytes(data))
        assert isinstance(found, Picture) or found in REASONS
        seen.add(found if isinstance(found, str) else "picture")
    assert {"picture", "truncated", "unreadable"} <= seen


@pytest.mark.parametrize(
    "bomb",
    [
        corpus.png_that_says(50_000, 50_000),
        corpus.png_that_says(13_300, 13_300),
        corpus.png_that_says(2**31 - 1, 2**31 - 1),
        corpus.png_that_says(1, 10**9),
        corpus.save(Image.new("RGB", (1001, 1000)), "JPEG"),
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01" + bytes(99),
        b"RIFF" + struct.pack("<I", 100) + b"WEBPVP8X\n\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(200),
    ],
    ids=["50k", "13k", "2^31", "thin", "pixel too many", "jpeg", "webp"],
)
def test_bombs_cost_little(bomb: bytes) -> None:
    import tracemalloc

    tracemalloc.start()
    start = time.process_time()
    found = verdict(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, str)
    assert time.process_time() - start < 0.5
    assert peak < 64_000_000


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt", b"iTXt", b"eXIf"])
def test_bombs_beside_the_picture_are_not_inflated(name: bytes) -> None:
    import tracemalloc

    bomb = b"x\0\0" + zlib.compress(bytes(10**8))
    whole = corpus.save(IMAGE, "PNG")
    data = whole[:33] + corpus.chunk(name, bomb) + whole[33:]
    tracemalloc.start()
    start = time.process_time()
    found = verdict(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, Picture)
    assert found.same
    assert np.array_equal(np.asarray(found.image), np.asarray(IMAGE))
    assert time.process_time() - start < 0.5
    assert peak < 32_000_000


def test_the_limits_are_exact() -> None:
    assert isinstance(verdict(corpus.save(Image.new("RGB", (1000, 1000)), "PNG")), Picture)
    data = corpus.save(IMAGE, "JPEG")
    padded = data + bytes(2_000_000 - len(data))
    assert isinstance(verdict(padded), Picture)
    assert verdict(padded + b"\0") == "too_large"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int) -> None:
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_270],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_90],
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = verdict(corpus.save(IMAGE, "PNG", exif=exif))
    assert isinstance(found, Picture)
    expected = IMAGE
    for step in undo.get(orientation, []):
        expected = expected.transpose(step)
    assert np.array_equal(np.asarray(found.image), np.asarray(expected))
    assert (found.width, found.height) == expected.size
    assert found.same == (orientation == 1)


def test_colours_mean_what_their_profile_says() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The same primaries under each other's name: red in this space is green in sRGB.
    swapped = srgb.replace(b"rXYZ", b"tmp?").replace(b"gXYZ", b"rXYZ").replace(b"tmp?", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be"))
    found = verdict(corpus.save(IMAGE, "PNG", icc_profile=swapped))
    assert isinstance(found, Picture)
    assert not found.same
    expected = np.asarray(IMAGE)[:, :, [1, 0, 2]].astype(int)
    assert np.abs(np.asarray(found.image).astype(int) - expected).max() <= 2
    kept = verdict(corpus.save(IMAGE, "PNG", icc_profile=srgb))
    assert isinstance(kept, Picture)
    assert kept.same
    assert np.array_equal(np.asarray(kept.image), np.asarray(IMAGE))


def test_jpegs_are_decoded_as_pillow_decodes_them() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}):
        data = corpus.save(corpus.scene(8, (321, 123)), "JPEG", **options)
        found = verdict(data)
        assert isinstance(found, Picture)
        assert np.array_equal(
            np.asarray(found.image), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        )


def test_a_small_jpeg_is_enough_for_a_small_sample() -> None:
    data = corpus.save(corpus.scene(8, (1000, 800)), "JPEG")
    found = decode(data, **LIMITS, smallest=100)
    assert min(found.image.size) >= 100
    assert found.image.width < 300
    assert (found.width, found.height) == (1000, 800)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_shows_the_background(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((10, 20, 30, 255), (4, 0, 8, 8))
    if mode == "P":
        data = corpus.save(image.quantize(4), "PNG")
    else:
        data = corpus.save(
            image.convert(mode),
            "PNG" if mode != "PA" else "WEBP",
            **({"lossless": True} if mode == "PA" else {}),
        )
    found = decode(data, background="#ff8000", max_bytes=10**6, max_pixels=10**6)
    pixels = np.asarray(found.image)
    assert (pixels[:, :4] == [255, 128, 0]).all()
    assert not (pixels[:, 4:] == [255, 128, 0]).all(-1).any()
    assert not found.same
