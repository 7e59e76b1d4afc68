"""Files that are no picture, or not one that is wanted: made by kind and number, for `dirty`."""

from __future__ import annotations

import random
import struct
import zlib

from tests.pipelines.sources.corpus import chunk, png_that_says, save, scene
from tests.pipelines.sources.dirty_sound import CANARY, IGNORED, Made, any_scene


def cut(draw: random.Random, n: int) -> Made:
    form, ending = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"))[n % 3]
    data = save(any_scene(draw), form, **({"progressive": True} if n % 6 == 0 else {}))
    return ending, data[: draw.randrange(16, len(data) - 1)], "truncated"


def no_image(draw: random.Random, n: int) -> Made:
    pages = (
        b"<!doctype html><title>404</title>" + CANARY, b'{"error": "not found"}', b"plain words\n" * 5,
        bytes(300),
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n" + CANARY, b"%PDF-1.7\n" + CANARY, b"PK\3\4" + bytes(90),
        b"\x7fELF" + bytes(90),
        b"SIMPLE  =                    T", b"\xff\xd8", b"\x89PNG", b"RIFF\1\0\0\0WAVE",
    )  # fmt: skip
    return (".jpg", ".png", ".webp", ".svg")[n % 4], pages[n % len(pages)], "not_an_image"


def other_file(draw: random.Random, n: int) -> Made:
    ending = (".md", ".eps", ".pdf", ".html", ".py", ".zip", "", ".csv.bak")[n % 8]
    return ending, (b"%PDF-1.7\n", b"words", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"")[n % 4] + CANARY, IGNORED


def other_kind(draw: random.Random, n: int) -> Made:
    image = any_scene(draw)
    match n % 7:
        case 0:
            return ".gif", save(image, "GIF"), "unsupported"
        case 1:
            frames = [scene(m, (16, 16)) for m in range(50)]
            return ".gif", save(frames[0], "GIF", save_all=True, append_images=frames[1:]), "unsupported"
        case 2:
            return ".bmp", save(image, "BMP"), "unsupported"
        case 3:
            return ".tif", save(image, "TIFF"), "unsupported"
        case 4:
            return ".avif", b"\0\0\0\x1cftypavif" + bytes(200), "unsupported"
        case 5:
            return ".jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), "unsupported"
        case _:
            data = save(image, "JPEG")
            frame = data.index(b"\xff\xc0")
            if n % 14 == 6:
                return ".jpg", data[:frame] + b"\xff\xc9" + data[frame + 2 :], "unsupported"
            return ".jpg", data[: frame + 4] + b"\x0c" + data[frame + 5 :], "unsupported"


def moving(draw: random.Random, n: int) -> Made:
    frames = [scene(m, (12, 12)) for m in range(2 if n else 1500)]
    form, ending = (("PNG", ".png"), ("WEBP", ".webp"))[n % 2]
    return ending, save(frames[0], form, save_all=True, append_images=frames[1:]), "animated"


def bomb(draw: random.Random, n: int) -> Made:
    sizes = ((50_000, 50_000), (13_300, 13_300), (2**31 - 1, 2**31 - 1), (1, 10**9), (8001, 8000))
    if n % 3 == 0:
        return ".png", png_that_says(*sizes[n // 3 % len(sizes)]), "too_many_pixels"
    if n % 3 == 1:
        data = save(any_scene(draw), "JPEG")
        frame = data.index(b"\xff\xc0")
        return ".jpg", data[: frame + 5] + b"\xff\xdc\xff\xdc" + data[frame + 9 :], "too_many_pixels"
    data = save(any_scene(draw), "WEBP", lossless=True)
    return ".webp", data[:21] + b"\xff\xff\xff\x0f" + data[25:], "too_many_pixels"


def too_large(draw: random.Random, n: int) -> Made:
    return ".jpg", save(any_scene(draw), "JPEG"), "too_large", 64_000_000


def damaged(draw: random.Random, n: int) -> Made:
    image = any_scene(draw)
    png, jpeg = save(image, "PNG"), save(image, "JPEG")
    match n % 8:
        case 0:
            place = draw.randrange(45, len(png) - 20)
            return ".png", png[:place] + bytes([png[place] ^ 1]) + png[place + 1 :], "unreadable"
        case 1:
            return ".png", png[:33] + chunk(b"IDAT", b"\0\0" + CANARY * 9) + png[-12:], "unreadable"
        case 2:
            return ".png", png[:33] + png[-12:], "unreadable"
        case 3:
            return ".png", png.replace(b"IDAT", b"IDAX"), "unreadable"
        case 4:
            return ".jpg", jpeg[:2] + jpeg, "unreadable"
        case 5:
            # Its quantization tables are gone.
            start, frame = jpeg.index(b"\xff\xdb"), jpeg.index(b"\xff\xc0")
            return ".jpg", jpeg[:start] + jpeg[frame:], "unreadable"
        case 6:
            webp = save(image, "WEBP", lossless=True)
            return ".webp", short(webp), "unreadable"
        case _:
            rows = zlib.compress(bytes(40))
            return ".png", png[:33] + chunk(b"IDAT", rows) + png[-12:], "truncated"


def short(webp: bytes) -> bytes:
    """A whole container around the first bytes of the pixels."""
    body = b"WEBPVP8L" + struct.pack("<I", 6) + webp[20:26]
    return b"RIFF" + struct.pack("<I", len(body)) + body
