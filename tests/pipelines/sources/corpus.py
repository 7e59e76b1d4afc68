"""A folder of images as they are found: sound, odd, broken and hostile, each with the verdict it deserves."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageDraw


def scene(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Smooth and colourful, and no two alike."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).rectangle((seed % 30, 5, seed % 30 + 20, 30), fill=(seed * 7 % 256, 40, 90))
    return image


def save(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_says(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG of a few hundred bytes with the header of a large one."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + body + chunk(b"IEND", b"")


def rotated(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(scene(seed), "JPEG", quality=95, exif=exif)


def files() -> dict[str, tuple[bytes, str | None]]:
    """Name -> (bytes, reason of its rejection or None)."""
    jpeg = save(scene(1), "JPEG")
    frames = [scene(n) for n in (50, 51, 52)]
    wide_gamut = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    alpha = scene(20).convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 96, dtype=np.uint8), (64, 1))))
    deep = Image.fromarray(np.arange(96 * 64, dtype=np.uint16).reshape(64, 96) * 10)
    palette = alpha.quantize(16)
    sound = {
        "plain.jpg": jpeg,
        "upper case.JPEG": save(scene(2), "JPEG"),
        "plain.png": save(scene(3), "PNG"),
        "plain.webp": save(scene(4), "WEBP", quality=80),
        "gray.jpg": save(scene(5).convert("L"), "JPEG"),
        "one bit.png": save(scene(6).convert("1"), "PNG"),
        "cmyk.jpg": save(scene(7).convert("CMYK"), "JPEG"),
        "sixteen bits.png": save(deep, "PNG"),
        "alpha.png": save(alpha, "PNG"),
        "alpha.webp": save(alpha.rotate(180), "WEBP", lossless=True),
        "palette.png": save(palette, "PNG", transparency=0),
        "gray alpha.png": save(alpha.rotate(90).convert("LA"), "PNG"),
        "rotated.jpg": rotated(8),
        "profile of another space.jpg": save(scene(9), "JPEG", icc_profile=wide_gamut),
        "profile that is junk.jpg": save(scene(10), "JPEG", icc_profile=b"junk" * 50),
        "interlaced or progressive.jpg": save(scene(11), "JPEG", progressive=True),
        "wrong ending.png": save(scene(12), "JPEG"),
        "no ending": save(scene(13), "PNG"),
        "not a text.txt": save(scene(14), "PNG"),
        "line\nbreak.jpg": save(scene(15), "JPEG"),
        "n\u0303 nfd \U0001f98a.jpg": save(scene(16), "JPEG"),
        "dots.in.name.jpg": save(scene(17), "JPEG"),
        "-dash.jpg": save(scene(18), "JPEG"),
        "a/same.jpg": save(scene(19), "JPEG"),
        "b/same.jpg": save(scene(21), "JPEG"),
        "c/same.png": save(scene(22), "PNG"),
        "c/same.jpg": save(scene(23), "JPEG"),
        "twin.jpg": jpeg,
        "junk behind.jpg": save(scene(24), "JPEG") + b"PK\x03\x04" + b"junk" * 100,
        "tiny.png": save(Image.new("RGB", (1, 1), "red"), "PNG"),
        "blank.png": save(Image.new("RGB", (40, 40), "white"), "PNG"),
    }
    broken = {
        "cut.jpg": (save(scene(30), "JPEG")[:-400], "truncated"),
        "cut.png": (save(scene(31), "PNG")[:-3000], "truncated"),
        "cut.webp": (save(scene(32), "WEBP", lossless=True)[:-400], "truncated"),
        "header only.jpg": (jpeg[:20], "truncated"),
        "empty.jpg": (b"", "empty"),
        "words.jpg": (b"this is no picture\n" * 9, "not_an_image"),
        "page.png": (b"<html><body>404</body></html>", "not_an_image"),
        "drawing.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image"),
        "still.gif": (save(scene(33), "GIF"), "unsupported"),
        "moving.gif": (save(frames[0], "GIF", save_all=True, append_images=frames[1:]), "unsupported"),
        "moving.webp": (save(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animated"),
        "moving.png": (save(frames[0], "PNG", save_all=True, append_images=frames[1:]), "animated"),
        "map.bmp": (save(scene(34), "BMP"), "unsupported"),
        "scan.tiff": (save(scene(35), "TIFF"), "unsupported"),
        "bomb.png": (png_that_says(50_000, 50_000), "too_many_pixels"),
        "small bomb.png": (png_that_says(13_300, 13_300), "too_many_pixels"),
        "long.webp": (b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(100), "truncated"),
        "damaged.png": (save(scene(36), "PNG").replace(b"IDAT", b"IDAX", 1), "unreadable"),
        "large.jpg": (jpeg + bytes(3_000_000), "too_large"),
    }
    return {**{name: (data, None) for name, data in sound.items()}, **broken}


def write(folder: Path, what: dict[str, tuple[bytes, str | None]]) -> None:
    for name, (data, _) in what.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
