"""Files that hold a picture, whatever else they hold: made by kind and number, for `dirty`."""

from __future__ import annotations

import functools
import io
import random
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from tests.pipelines.sources.corpus import chunk, save, scene

CANARY = b"CANARY-9e107d9d372b"
"""In every kind of metadata and behind every kind of end: it must not come out."""
COMMITTED, IGNORED = "committed", "ignored"
SCRIPT = b"<html><script>alert('" + CANARY + b"')</script>"
Made = tuple[str, bytes, str] | tuple[str, bytes, str, int]
"""Ending, bytes, verdict; how many zeros follow."""


def any_scene(draw: random.Random) -> Image.Image:
    return scene(draw.randrange(1 << 30), (draw.randrange(20, 150), draw.randrange(20, 150)))


def alpha(draw: random.Random) -> Image.Image:
    image = any_scene(draw).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def exif(orientation: int = 1) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    for tag in (0x010E, 0x010F, 0x013B, 0x8298, 0x9286):
        found[tag] = CANARY.decode()
    found.get_ifd(0x8825).update({1: "N", 29: CANARY.decode()})
    return found


@functools.cache
def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """The profile of a space whose red is green."""
    return srgb().replace(b"rXYZ", b"tmp?").replace(b"gXYZ", b"rXYZ").replace(b"tmp?", b"gXYZ")


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(draw: random.Random, n: int) -> Made:
    image = any_scene(draw)
    options = (
        {"quality": 30}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1},
        {"optimize": True},
        {"keep_rgb": True},
    )[n % 6]  # fmt: skip
    if n % 7 == 0:
        image, options = image.convert("L"), {}
    return ".jpg", save(image, "JPEG", **options), COMMITTED


def dressed_jpeg(draw: random.Random, n: int) -> Made:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + CANARY + b"</x:xmpmeta>"
    data = save(
        any_scene(draw), "JPEG", exif=exif(), xmp=packet, comment=CANARY, icc_profile=srgb(), dpi=(9, 9)
    )
    thumbnail = save(any_scene(draw).resize((16, 16)), "JPEG", comment=CANARY)
    others = b"".join(
        segment(marker, b"Photoshop 3.0\0" + CANARY + thumbnail) for marker in (0xED, 0xEC, 0xE5)
    )
    match n % 3:
        case 0:
            return ".jpg", data[:20] + others + data[20:], COMMITTED
        case 1:
            pixels = b"\4\4" + (CANARY * 3)[:48]
            return ".jpeg", data[:2] + segment(0xE0, data[6:18] + pixels) + data[20:], COMMITTED
        case _:
            # Behind the scan, before the end.
            return ".jpg", data[:-2] + others + data[-2:], COMMITTED


def huge(draw: random.Random, n: int) -> Made:
    data = save(any_scene(draw), "JPEG", exif=exif())
    return ".jpg", data[:2] + segment(0xE1, b"Exif\0\0" + CANARY * 3000) * (20 + n) + data[2:], COMMITTED


def png(draw: random.Random, n: int) -> Made:
    image = any_scene(draw)
    match n % 9:
        case 0 | 1:
            data = save(image, "PNG")
        case 2:
            data = save(image.convert("L"), "PNG")
        case 3:
            data = save(image.convert("1"), "PNG")
        case 4:
            data = save(image.quantize(draw.randrange(2, 200)), "PNG")
        case 5:
            data = save(alpha(draw).quantize(9), "PNG", transparency=draw.randrange(9))
        case 6:
            data = save(alpha(draw), "PNG")
        case 7:
            data = save(alpha(draw).convert("LA"), "PNG")
        case _:
            data = save(image, "PNG", transparency=(1, 2, 3))
    return ".png", data, COMMITTED


def deep(draw: random.Random, n: int) -> Made:
    gray = np.asarray(any_scene(draw).convert("L")).astype(np.uint16) * 257
    if n % 2:
        return ".png", save(Image.fromarray(gray), "PNG"), COMMITTED
    height, width = gray.shape
    colour = 2 if n % 4 else 6
    rows = np.repeat(gray[:, :, None], 3 if colour == 2 else 4, 2).astype(">u2")
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    ends = chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return ".png", b"\x89PNG\r\n\x1a\n" + head + ends, COMMITTED


def dressed_png(draw: random.Random, n: int) -> Made:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", CANARY.decode())
    info.add_text("Zipped", CANARY.decode(), zip=True)
    info.add_itxt("XML:com.adobe.xmp", CANARY.decode())
    info.add(b"tIME", b"\x07\xea\1\1\1\1\1")
    info.add(b"gAMA", struct.pack(">I", 45455))
    info.add(b"prVt", CANARY)
    data = save(any_scene(draw), "PNG", pnginfo=info, exif=exif(), icc_profile=srgb())
    return ".png", data[:-12] + chunk(b"tEXt", b"late\0" + CANARY) + data[-12:], COMMITTED


def packed_bomb(draw: random.Random, n: int) -> Made:
    """100 MB of nothing in a chunk that is not inflated, beside a sound picture."""
    data = save(any_scene(draw), "PNG")
    name = (b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"prVt")[n % 5]
    said = {b"iTXt": b"x\0\1\0\0\0"}.get(name, b"x\0\0")
    return ".png", data[:33] + chunk(name, said + zeros(10**8)) + data[33:], COMMITTED


@functools.cache
def zeros(size: int) -> bytes:
    stream = zlib.compressobj(1)
    piece = bytes(1 << 20)
    packed = b"".join(
        stream.compress(piece[: min(len(piece), size - at)]) for at in range(0, size, len(piece))
    )
    return packed + stream.flush()


def webp(draw: random.Random, n: int) -> Made:
    image = alpha(draw) if n % 3 == 0 else any_scene(draw)
    dressed = {"exif": exif(), "xmp": CANARY, "icc_profile": srgb()} if n % 2 else {}
    shape = {"lossless": True} if n % 4 < 2 else {"quality": 70}
    data = save(image, "WEBP", **shape, **dressed)
    if n % 5 == 0:
        more = (
            data[8:] + b"junk" + struct.pack("<I", len(CANARY) + 1) + CANARY + b"\0" * (2 - len(CANARY) % 2)
        )
        data = b"RIFF" + struct.pack("<I", len(more)) + more
    return ".webp", data, COMMITTED


def cmyk(draw: random.Random, n: int) -> Made:
    data = save(any_scene(draw).convert("CMYK"), "JPEG", progressive=n % 2 == 0, exif=exif(), comment=CANARY)
    return ".jpg", data, COMMITTED


def rotated(draw: random.Random, n: int) -> Made:
    form, ending = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"))[n // 8 % 3]
    return ending, save(any_scene(draw), form, exif=exif(1 + n % 8)), COMMITTED


def misnamed(draw: random.Random, n: int) -> Made:
    form = ("JPEG", "PNG", "WEBP")[n % 3]
    return (
        (".gif", ".bmp", ".svg", ".tiff", "", ".txt", ".exe", ".JPG", ".jpg.png", ".pdf")[n % 10],
        save(any_scene(draw), form),
        COMMITTED,
    )


def profile(draw: random.Random, n: int) -> Made:
    said = (swapped(), b"junk" * 100 + CANARY, srgb()[:200] + CANARY)[n % 3]
    form, ending = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"))[n % 2 if n % 3 else n % 9 // 3]
    return ending, save(any_scene(draw), form, icc_profile=said), COMMITTED


def two_pictures(draw: random.Random, n: int) -> Made:
    second = scene(n, (40, 30))
    return ".jpg", save(any_scene(draw), "MPO", save_all=True, append_images=[second], exif=exif()), COMMITTED


def polyglot(draw: random.Random, n: int) -> Made:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("payload.js", SCRIPT)
    image = any_scene(draw)
    match n % 6:
        case 0:
            return ".jpg", save(image, "JPEG") + archive.getvalue(), COMMITTED
        case 1:
            return ".png", save(image, "PNG") + SCRIPT, COMMITTED
        case 2:
            return ".webp", save(image, "WEBP") + archive.getvalue(), COMMITTED
        case 3:
            return ".jpg", save(image, "JPEG", comment=b"<?php system('" + CANARY + b"'); ?>"), COMMITTED
        case 4:
            data = save(image, "PNG")
            return ".png", data[:33] + chunk(b"PLTE", b"*/=" + CANARY + b"//") + data[33:], COMMITTED
        case _:
            return ".gif", b"GIF89a/*" + bytes(8) + b"*/=1;alert('" + CANARY + b"')", "unsupported"


def stuffed(draw: random.Random, n: int) -> Made:
    """A passenger among the coded pixels themselves, behind the last of them."""
    if n % 2:
        data = save(any_scene(draw), "JPEG")
        return ".jpg", data[:-2] + SCRIPT * 9 + data[-2:], COMMITTED
    image = any_scene(draw)
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image)) + (SCRIPT if n % 4 else b"")
    body = zlib.compress(rows, 0) + (b"" if n % 4 else SCRIPT)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0))
    return ".png", b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b""), COMMITTED


def near_the_cap(draw: random.Random, n: int) -> Made:
    """What costs most of what is allowed: some 64 million pixels."""
    if n < 3:
        side, colour, each = ((8000, 0, 1), (7900, 2, 3), (8000, 3, 1))[n]
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0))
        palette = chunk(b"PLTE", b"\1\2\3" * 2) if colour == 3 else b""
        body = chunk(b"IDAT", zeros(side * (side * each + 1)))
        return ".png", b"\x89PNG\r\n\x1a\n" + head + palette + body + chunk(b"IEND", b""), COMMITTED
    options = ({"progressive": True, "subsampling": 0}, {"quality": 50}, {"exif": exif(6)})[n - 3]
    return ".jpg", save(Image.new("RGB", (7600, 7600), (n, 90, 200)), "JPEG", **options), COMMITTED


def half(draw: random.Random, n: int) -> Made:
    """A JPEG whose container is whole and whose scan stops half way: decoders fill up what is missing."""
    data = save(any_scene(draw), "JPEG", quality=90)
    scan = data.index(b"\xff\xda")
    return ".jpg", data[: scan + (len(data) - scan) // 2].rstrip(b"\xff") + b"\xff\xd9", COMMITTED
