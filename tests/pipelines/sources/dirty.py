"""A thousand files as they are found where nobody vouches for them, each with the verdict it deserves."""

from __future__ import annotations

import functools
import io
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from tests.pipelines.sources.corpus import chunk, png_that_says, save, scene

CANARY = b"CANARY-9e107d9d372b"
"""In every kind of metadata and behind every kind of end: it must not come out."""
COMMITTED, IGNORED = "committed", "ignored"
SCRIPT = b"<html><script>alert('" + CANARY + b"')</script>"


@dataclass(frozen=True)
class File:
    """One file, or a link."""

    name: str
    """As `os.fsdecode` gives it: it may hold bytes that are no UTF-8."""
    verdict: str
    """committed, ignored, or the reason of its rejection."""
    data: bytes = b""
    link: str | None = None
    longer: int = 0
    """Zeros that follow, as a hole in the file."""


@functools.cache
def corpus(seed: int = 0) -> list[File]:
    """1,000 files in 21 folders, in an order of their own, all names different."""
    files = _files({kind: range(count) for kind, (count, _) in _KINDS.items()}, seed, twins=40, links=10)
    assert len(files) == 1000
    return files


@functools.cache
def sample(seed: int = 0) -> list[File]:
    """200 of all kinds but those that take seconds."""
    light = {kind: range(0, count, 5) for kind, (count, _) in _KINDS.items() if kind not in _HEAVY}
    files = _files(light, seed, twins=7, links=2)
    assert len(files) == 200
    return files


def _files(kinds: Mapping[str, range], seed: int, *, twins: int, links: int) -> list[File]:
    draw = random.Random(seed)
    made: list[tuple[str, Made]] = []
    for kind, numbers in kinds.items():
        made += [
            (f"{kind}-{n:03d}", _KINDS[kind][1](random.Random(f"{seed} {kind} {n}"), n)) for n in numbers
        ]
    draw.shuffle(made)
    files = []
    for n, (stem, (ending, data, verdict, *more)) in enumerate(made):
        name = _odd(stem, ending, n // 8) if n % 8 == 0 else f"{stem}{ending}"
        files.append(File(f"{n % 20:02d}/{name}", verdict, data, longer=sum(more)))
    sound = [file for file in files if file.verdict == COMMITTED and len(file.data) < 100_000]
    for n in range(twins):
        twin = draw.choice(sound)
        files.append(File(f"{n % 20:02d}/twin-{n:03d}{os.path.splitext(twin.name)[1]}", COMMITTED, twin.data))
    for n in range(links):
        target = draw.choice(sound)
        files.append(File(f"links/file-{n}.jpg", COMMITTED, target.data, link=f"../{target.name}"))
        files.append(File(f"links/folder-{n}.jpg", IGNORED, link=f"../{n:02d}"))
        files.append(File(f"links/dead-{n}.png", IGNORED, link="../nowhere.png"))
        files.append(File(f"links/round-{n}.png", IGNORED, link=f"round-{n}.png"))
    assert len({file.name for file in files}) == len(files)
    return files


def write(folder: Path, files: list[File]) -> None:
    for file in files:
        place = os.path.join(os.fspath(folder), file.name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if file.link is not None:
            os.symlink(file.link, place)
            continue
        with open(place, "wb") as out:
            out.write(file.data)
            out.truncate(len(file.data) + file.longer)


def _odd(stem: str, ending: str, n: int) -> str:
    """A name that breaks what splits by lines, spaces or dots, or takes names for text."""
    ways = ("\n", "\r\t", " ", "n\u0303", "\U0001f98a", os.fsdecode(b"\xff\xfe"), "\u202e", "a" * 190,
            "'\"`$(x)", ".tar.", "\x1b[31m", ";,|", "\\")  # fmt: skip
    way = ways[n % len(ways)]
    return f"-{way}{stem}{ending}" if n % 3 == 0 else f"{stem}{way}{ending}"


Made = tuple[str, bytes, str] | tuple[str, bytes, str, int]
"""Ending, bytes, verdict; how many zeros follow."""


def _scene(draw: random.Random) -> Image.Image:
    return scene(draw.randrange(1 << 30), (draw.randrange(20, 150), draw.randrange(20, 150)))


def _alpha(draw: random.Random) -> Image.Image:
    image = _scene(draw).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _exif(orientation: int = 1) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    for tag in (0x010E, 0x010F, 0x013B, 0x8298, 0x9286):
        found[tag] = CANARY.decode()
    found.get_ifd(0x8825).update({1: "N", 29: CANARY.decode()})
    return found


@functools.cache
def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _swapped() -> bytes:
    """The profile of a space whose red is green."""
    return _srgb().replace(b"rXYZ", b"tmp?").replace(b"gXYZ", b"rXYZ").replace(b"tmp?", b"gXYZ")


def _segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def _jpeg(draw: random.Random, n: int) -> Made:
    image = _scene(draw)
    options = (
        {"quality": 30}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1},
        {"optimize": True},
        {"keep_rgb": True},
    )[n % 6]  # fmt: skip
    if n % 7 == 0:
        image, options = image.convert("L"), {}
    return ".jpg", save(image, "JPEG", **options), COMMITTED


def _dressed_jpeg(draw: random.Random, n: int) -> Made:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + CANARY + b"</x:xmpmeta>"
    data = save(
        _scene(draw), "JPEG", exif=_exif(), xmp=packet, comment=CANARY, icc_profile=_srgb(), dpi=(9, 9)
    )
    thumbnail = save(_scene(draw).resize((16, 16)), "JPEG", comment=CANARY)
    others = b"".join(
        _segment(marker, b"Photoshop 3.0\0" + CANARY + thumbnail) for marker in (0xED, 0xEC, 0xE5)
    )
    match n % 3:
        case 0:
            return ".jpg", data[:20] + others + data[20:], COMMITTED
        case 1:
            pixels = b"\4\4" + (CANARY * 3)[:48]
            return ".jpeg", data[:2] + _segment(0xE0, data[6:18] + pixels) + data[20:], COMMITTED
        case _:
            # Behind the scan, before the end.
            return ".jpg", data[:-2] + others + data[-2:], COMMITTED


def _huge(draw: random.Random, n: int) -> Made:
    data = save(_scene(draw), "JPEG", exif=_exif())
    return ".jpg", data[:2] + _segment(0xE1, b"Exif\0\0" + CANARY * 3000) * (20 + n) + data[2:], COMMITTED


def _png(draw: random.Random, n: int) -> Made:
    image = _scene(draw)
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
            data = save(_alpha(draw).quantize(9), "PNG", transparency=draw.randrange(9))
        case 6:
            data = save(_alpha(draw), "PNG")
        case 7:
            data = save(_alpha(draw).convert("LA"), "PNG")
        case _:
            data = save(image, "PNG", transparency=(1, 2, 3))
    return ".png", data, COMMITTED


def _deep(draw: random.Random, n: int) -> Made:
    gray = np.asarray(_scene(draw).convert("L")).astype(np.uint16) * 257
    if n % 2:
        return ".png", save(Image.fromarray(gray), "PNG"), COMMITTED
    height, width = gray.shape
    colour = 2 if n % 4 else 6
    rows = np.repeat(gray[:, :, None], 3 if colour == 2 else 4, 2).astype(">u2")
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    ends = chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return ".png", b"\x89PNG\r\n\x1a\n" + head + ends, COMMITTED


def _dressed_png(draw: random.Random, n: int) -> Made:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", CANARY.decode())
    info.add_text("Zipped", CANARY.decode(), zip=True)
    info.add_itxt("XML:com.adobe.xmp", CANARY.decode())
    info.add(b"tIME", b"\x07\xea\1\1\1\1\1")
    info.add(b"gAMA", struct.pack(">I", 45455))
    info.add(b"prVt", CANARY)
    data = save(_scene(draw), "PNG", pnginfo=info, exif=_exif(), icc_profile=_srgb())
    return ".png", data[:-12] + chunk(b"tEXt", b"late\0" + CANARY) + data[-12:], COMMITTED


def _packed_bomb(draw: random.Random, n: int) -> Made:
    """100 MB of nothing in a chunk that is not inflated, beside a sound picture."""
    data = save(_scene(draw), "PNG")
    name = (b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"prVt")[n % 5]
    said = {b"iTXt": b"x\0\1\0\0\0"}.get(name, b"x\0\0")
    return ".png", data[:33] + chunk(name, said + _zeros(10**8)) + data[33:], COMMITTED


@functools.cache
def _zeros(size: int) -> bytes:
    stream = zlib.compressobj(1)
    piece = bytes(1 << 20)
    packed = b"".join(
        stream.compress(piece[: min(len(piece), size - at)]) for at in range(0, size, len(piece))
    )
    return packed + stream.flush()


def _webp(draw: random.Random, n: int) -> Made:
    image = _alpha(draw) if n % 3 == 0 else _scene(draw)
    dressed = {"exif": _exif(), "xmp": CANARY, "icc_profile": _srgb()} if n % 2 else {}
    shape = {"lossless": True} if n % 4 < 2 else {"quality": 70}
    data = save(image, "WEBP", **shape, **dressed)
    if n % 5 == 0:
        more = (
            data[8:] + b"junk" + struct.pack("<I", len(CANARY) + 1) + CANARY + b"\0" * (2 - len(CANARY) % 2)
        )
        data = b"RIFF" + struct.pack("<I", len(more)) + more
    return ".webp", data, COMMITTED


def _cmyk(draw: random.Random, n: int) -> Made:
    data = save(_scene(draw).convert("CMYK"), "JPEG", progressive=n % 2 == 0, exif=_exif(), comment=CANARY)
    return ".jpg", data, COMMITTED


def _rotated(draw: random.Random, n: int) -> Made:
    form, ending = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"))[n // 8 % 3]
    return ending, save(_scene(draw), form, exif=_exif(1 + n % 8)), COMMITTED


def _misnamed(draw: random.Random, n: int) -> Made:
    form = ("JPEG", "PNG", "WEBP")[n % 3]
    return (
        (".gif", ".bmp", ".svg", ".tiff", "", ".txt", ".exe", ".JPG", ".jpg.png", ".pdf")[n % 10],
        save(_scene(draw), form),
        COMMITTED,
    )


def _profile(draw: random.Random, n: int) -> Made:
    said = (_swapped(), b"junk" * 100 + CANARY, _srgb()[:200] + CANARY)[n % 3]
    form, ending = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"))[n % 2 if n % 3 else n % 9 // 3]
    return ending, save(_scene(draw), form, icc_profile=said), COMMITTED


def _two_pictures(draw: random.Random, n: int) -> Made:
    second = scene(n, (40, 30))
    return ".jpg", save(_scene(draw), "MPO", save_all=True, append_images=[second], exif=_exif()), COMMITTED


def _polyglot(draw: random.Random, n: int) -> Made:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("payload.js", SCRIPT)
    image = _scene(draw)
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


def _stuffed(draw: random.Random, n: int) -> Made:
    """A passenger among the coded pixels themselves, behind the last of them."""
    if n % 2:
        data = save(_scene(draw), "JPEG")
        return ".jpg", data[:-2] + SCRIPT * 9 + data[-2:], COMMITTED
    image = _scene(draw)
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image)) + (SCRIPT if n % 4 else b"")
    body = zlib.compress(rows, 0) + (b"" if n % 4 else SCRIPT)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0))
    return ".png", b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b""), COMMITTED


def _near_the_cap(draw: random.Random, n: int) -> Made:
    """What costs most of what is allowed: some 64 million pixels."""
    if n < 3:
        side, colour, each = ((8000, 0, 1), (7900, 2, 3), (8000, 3, 1))[n]
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0))
        palette = chunk(b"PLTE", b"\1\2\3" * 2) if colour == 3 else b""
        body = chunk(b"IDAT", _zeros(side * (side * each + 1)))
        return ".png", b"\x89PNG\r\n\x1a\n" + head + palette + body + chunk(b"IEND", b""), COMMITTED
    options = ({"progressive": True, "subsampling": 0}, {"quality": 50}, {"exif": _exif(6)})[n - 3]
    return ".jpg", save(Image.new("RGB", (7600, 7600), (n, 90, 200)), "JPEG", **options), COMMITTED


def _cut(draw: random.Random, n: int) -> Made:
    form, ending = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"))[n % 3]
    data = save(_scene(draw), form, **({"progressive": True} if n % 6 == 0 else {}))
    return ending, data[: draw.randrange(16, len(data) - 1)], "truncated"


def _no_image(draw: random.Random, n: int) -> Made:
    pages = (
        b"<!doctype html><title>404</title>" + CANARY, b'{"error": "not found"}', b"plain words\n" * 5,
        bytes(300),
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n" + CANARY, b"%PDF-1.7\n" + CANARY, b"PK\3\4" + bytes(90),
        b"\x7fELF" + bytes(90),
        b"SIMPLE  =                    T", b"\xff\xd8", b"\x89PNG", b"RIFF\1\0\0\0WAVE",
    )  # fmt: skip
    return (".jpg", ".png", ".webp", ".svg")[n % 4], pages[n % len(pages)], "not_an_image"


def _other_file(draw: random.Random, n: int) -> Made:
    ending = (".md", ".eps", ".pdf", ".html", ".py", ".zip", "", ".csv.bak")[n % 8]
    return ending, (b"%PDF-1.7\n", b"words", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"")[n % 4] + CANARY, IGNORED


def _other_kind(draw: random.Random, n: int) -> Made:
    image = _scene(draw)
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


def _moving(draw: random.Random, n: int) -> Made:
    frames = [scene(m, (12, 12)) for m in range(2 if n else 1500)]
    form, ending = (("PNG", ".png"), ("WEBP", ".webp"))[n % 2]
    return ending, save(frames[0], form, save_all=True, append_images=frames[1:]), "animated"


def _bomb(draw: random.Random, n: int) -> Made:
    sizes = ((50_000, 50_000), (13_300, 13_300), (2**31 - 1, 2**31 - 1), (1, 10**9), (8001, 8000))
    if n % 3 == 0:
        return ".png", png_that_says(*sizes[n // 3 % len(sizes)]), "too_many_pixels"
    if n % 3 == 1:
        data = save(_scene(draw), "JPEG")
        frame = data.index(b"\xff\xc0")
        return ".jpg", data[: frame + 5] + b"\xff\xdc\xff\xdc" + data[frame + 9 :], "too_many_pixels"
    data = save(_scene(draw), "WEBP", lossless=True)
    return ".webp", data[:21] + b"\xff\xff\xff\x0f" + data[25:], "too_many_pixels"


def _too_large(draw: random.Random, n: int) -> Made:
    return ".jpg", save(_scene(draw), "JPEG"), "too_large", 64_000_000


def _damaged(draw: random.Random, n: int) -> Made:
    image = _scene(draw)
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
            return ".webp", _short(webp), "unreadable"
        case _:
            rows = zlib.compress(bytes(40))
            return ".png", png[:33] + chunk(b"IDAT", rows) + png[-12:], "truncated"


def _short(webp: bytes) -> bytes:
    """A whole container around the first bytes of the pixels."""
    body = b"WEBPVP8L" + struct.pack("<I", 6) + webp[20:26]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _half(draw: random.Random, n: int) -> Made:
    """A JPEG whose container is whole and whose scan stops half way: decoders fill up what is missing."""
    data = save(_scene(draw), "JPEG", quality=90)
    scan = data.index(b"\xff\xda")
    return ".jpg", data[: scan + (len(data) - scan) // 2].rstrip(b"\xff") + b"\xff\xd9", COMMITTED


_HEAVY = ("near-the-cap", "too-large", "packed-bomb")
"""Kinds that take seconds to make or to judge."""
_KINDS: dict[str, tuple[int, Callable[[random.Random, int], Made]]] = {
    "jpeg": (85, _jpeg),
    "dressed-jpeg": (75, _dressed_jpeg),
    "huge-metadata": (12, _huge),
    "png": (60, _png),
    "deep": (28, _deep),
    "dressed-png": (40, _dressed_png),
    "packed-bomb": (20, _packed_bomb),
    "webp": (60, _webp),
    "cmyk": (30, _cmyk),
    "rotated": (72, _rotated),
    "misnamed": (46, _misnamed),
    "profile": (30, _profile),
    "two-pictures": (10, _two_pictures),
    "polyglot": (48, _polyglot),
    "stuffed": (16, _stuffed),
    "near-the-cap": (6, _near_the_cap),
    "cut": (60, _cut),
    "empty": (16, lambda draw, n: ((".jpg", ".png", ".webp", ".gif")[n % 4], b"", "empty")),
    "no-image": (52, _no_image),
    "other-file": (24, _other_file),
    "other-kind": (42, _other_kind),
    "moving": (20, _moving),
    "bomb": (30, _bomb),
    "too-large": (2, _too_large),
    "damaged": (24, _damaged),
    "half": (12, _half),
}
