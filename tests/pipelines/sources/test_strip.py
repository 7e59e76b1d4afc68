"""Containers against Pillow: what a header says, and that stripped files show the same pixels alone."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from pipelines.sources.containers.profile import is_srgb
from pipelines.sources.decode import checked, keepable
from pipelines.sources.header import header
from pipelines.sources.reject import REASONS, Reject
from pipelines.sources.strip import strip
from tests.pipelines.sources import corpus

CANARY = b"CANARY-5d41402a"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
IMAGE = corpus.scene(7, (83, 61))
ALPHA = IMAGE.convert("RGBA")
ALPHA.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 83, dtype=np.uint8), (61, 1))))


def exif(orientation: int = 1) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x010E] = CANARY.decode()
    found.get_ifd(0x8825)[29] = CANARY.decode()
    return found


def texts() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", CANARY.decode())
    info.add_text("Packed", CANARY.decode(), zip=True)
    info.add_itxt("XML:com.adobe.xmp", CANARY.decode())
    info.add(b"gAMA", struct.pack(">I", 45455))
    info.add(b"prVt", CANARY)
    return info


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpegs() -> Iterator[tuple[str, bytes]]:
    from simplejpeg import encode_jpeg

    dressed = {"exif": exif(), "comment": CANARY, "icc_profile": SRGB, "xmp": CANARY, "dpi": (72, 72)}
    for name, options in {
        "444": {"subsampling": 0},
        "420": {"subsampling": 2},
        "progressive": {"progressive": True},
        "progressive 420": {"progressive": True, "subsampling": 2},
        "restarts": {"restart_marker_rows": 1},
        "restarts of blocks": {"restart_marker_blocks": 3},
        "optimized": {"optimize": True, "quality": 20},
        "kept RGB": {"keep_rgb": True},
    }.items():
        yield name, corpus.save(IMAGE, "JPEG", **options)
        yield f"{name}, dressed", corpus.save(IMAGE, "JPEG", **options, **dressed)
    yield "gray", corpus.save(IMAGE.convert("L"), "JPEG", **dressed)
    yield "CMYK", corpus.save(IMAGE.convert("CMYK"), "JPEG", **dressed)
    yield "simplejpeg", encode_jpeg(np.asarray(IMAGE), colorsubsampling="422")
    plain = corpus.save(IMAGE, "JPEG", restart_marker_rows=1)
    thumbnail = plain[:18] + b"\2\2" + CANARY[:12]
    yield "thumbnail", plain[:4] + struct.pack(">H", 28) + thumbnail[6:] + plain[20:]
    between = segment(0xE1, b"junk" + CANARY) + segment(0xFE, CANARY) + segment(0xEB, CANARY * 900)
    yield "segments", plain[:20] + between * 3 + plain[20:]
    yield "behind the scan", plain[:-2] + between + plain[-2:]
    yield "filled", plain[:20] + b"\xff\xff\xff" + plain[20:]
    yield "junk between", plain[:20] + CANARY + plain[20:]
    yield "zip behind", plain + b"PK\3\4" + CANARY
    yield "two pictures", corpus.save(IMAGE, "MPO", save_all=True, append_images=[corpus.scene(9)])
    progressive = corpus.save(IMAGE, "JPEG", progressive=True)
    scan = progressive.index(b"\xff\xc4", progressive.index(b"\xff\xda"))
    yield "between scans", progressive[:scan] + segment(0xFE, CANARY) + progressive[scan:]
    adobe = corpus.save(IMAGE, "JPEG", keep_rgb=True)
    where = adobe.index(b"\xff\xee")
    yield (
        "long Adobe",
        adobe[:where] + segment(0xEE, adobe[where + 4 : where + 16] + CANARY) + adobe[where + 16 :],
    )


def pngs() -> Iterator[tuple[str, bytes]]:
    deep = Image.fromarray(np.arange(61 * 83, dtype=np.uint16).reshape(61, 83) * 12)
    for name, image in {
        "RGB": IMAGE,
        "L": IMAGE.convert("L"),
        "1": IMAGE.convert("1"),
        "P": IMAGE.quantize(20),
        "RGBA": ALPHA,
        "LA": ALPHA.convert("LA"),
        "16": deep,
    }.items():
        yield name, corpus.save(image, "PNG")
        yield (
            f"{name}, dressed",
            corpus.save(image, "PNG", pnginfo=texts(), exif=exif(), icc_profile=SRGB, dpi=(72, 72)),
        )
    yield "P, tRNS", corpus.save(ALPHA.quantize(9), "PNG", transparency=3)
    yield "RGB, tRNS", corpus.save(IMAGE, "PNG", transparency=(1, 2, 3), pnginfo=texts())
    yield "interlaced", interlaced()
    plain = corpus.save(IMAGE, "PNG")
    yield "page behind", plain + b"<html>" + CANARY
    yield "long end", plain[:-12] + corpus.chunk(b"IEND", CANARY)
    yield "late texts", plain[:-12] + corpus.chunk(b"tEXt", b"x\0" + CANARY) + plain[-12:]
    yield "palette of RGB", plain[:33] + corpus.chunk(b"PLTE", CANARY) + plain[33:]
    body = plain[41:-16]
    parts = b"".join(corpus.chunk(b"IDAT", body[n : n + 50]) for n in range(0, len(body), 50))
    yield "many parts", plain[:33] + parts + plain[-12:]


def webps() -> Iterator[tuple[str, bytes]]:
    dressed = {"exif": exif(), "icc_profile": SRGB, "xmp": CANARY}
    for name, options in {"lossy": {"quality": 60}, "lossless": {"lossless": True}}.items():
        for mode, image in {"RGB": IMAGE, "RGBA": ALPHA}.items():
            plain = corpus.save(image, "WEBP", **options)
            yield f"{name} {mode}", plain
            yield f"{name} {mode}, dressed", corpus.save(image, "WEBP", **options, **dressed)
            yield f"{name} {mode}, behind", plain + CANARY
            more = plain[8:] + b"junk" + struct.pack("<I", len(CANARY)) + CANARY + b"\0"
            yield f"{name} {mode}, chunk", b"RIFF" + struct.pack("<I", len(more)) + more
    yield "one frame", corpus.save(IMAGE, "WEBP", save_all=True, lossless=True)


def interlaced() -> bytes:
    """Adam7, which Pillow only reads."""
    pixels = np.asarray(IMAGE)
    rows = b""
    for x, y, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
                         (0, 1, 1, 2)):  # fmt: skip
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx])
    head = corpus.chunk(b"IHDR", struct.pack(">IIBBBBB", 83, 61, 8, 2, 0, 0, 1))
    body = corpus.chunk(b"tEXt", b"x\0" + CANARY) + corpus.chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + body + corpus.chunk(b"IEND", b"")


MADE = {"jpg": jpegs, "png": pngs, "webp": webps}
FILES = [(f"{kind} {name}", kind, data) for kind, files in MADE.items() for name, data in files()]


@pytest.mark.parametrize(("kind", "data"), [file[1:] for file in FILES], ids=[file[0] for file in FILES])
def test_stripped_files_show_the_same_and_nothing_else(kind: str, data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        said = header(data)
        assert (said.kind, said.width, said.height, said.frames) == (kind, *image.size, 1)
        mode = image.mode if "transparency" not in image.info else f"{image.mode} with transparency"
        plain = mode == "RGB" or (mode == "L" and said.bits == 8)
        assert said.plain == plain, mode
        assert said.channels == {"P": 1, "I;16": 1, "1": 1}.get(image.mode, len(image.getbands()))
        bare = strip(data, kind)
        assert CANARY not in bare
        assert b"sRGB" not in bare
        with Image.open(io.BytesIO(bare)) as found:
            found.load()
            assert found.mode == image.mode
            assert np.array_equal(np.asarray(found), np.asarray(image))
            assert found.info.get("transparency") == image.info.get("transparency")
            assert found.getpalette() == image.getpalette()
            harmless = {
                "jfif",
                "jfif_version",
                "jfif_unit",
                "jfif_density",
                "dpi",
                "adobe",
                "adobe_transform",
            }
            assert set(found.info) <= harmless | {
                "progressive", "progression", "interlace", "transparency", "loop", "background", "timestamp",
                "duration", "lossless",
            }  # fmt: skip
    assert strip(bare, kind) is bare, "there is nothing left to leave out"


def test_clean_files_are_kept_as_the_very_bytes() -> None:
    clean = [name for name, kind, data in FILES if strip(data, kind) is data]
    for name in (
        "jpg 420",
        "jpg progressive",
        "jpg restarts",
        "png RGB",
        "png P",
        "webp lossy RGB",
        "webp lossless RGBA",
    ):
        assert name in clean
    assert not any("dressed" in name or "behind" in name for name in clean)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_orientations_are_read_where_pillow_reads_them(kind: str, orientation: int) -> None:
    form = {"jpg": "JPEG"}.get(kind, kind.upper())
    data = corpus.save(IMAGE, form, exif=exif(orientation))
    assert header(data).orientation == orientation
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/>' % orientation
    other = {"xmp": packet} if kind != "png" else {"pnginfo": PngImagePlugin.PngInfo()}
    if kind == "png":
        other["pnginfo"].add_itxt("XML:com.adobe.xmp", packet.decode())
    assert header(corpus.save(IMAGE, form, **other)).orientation == orientation
    big = Image.Exif()
    big.endian = ">"
    big[0x0112] = orientation
    data = corpus.save(IMAGE, form, exif=big.tobytes())
    assert header(data).orientation == orientation
    assert keepable(header(data)) == (orientation == 1)


def rejected(data: bytes) -> str | None:
    try:
        header(data)
    except Reject as reject:
        return str(reject)
    return None


def test_a_cut_container_is_truncated_wherever_it_is_cut() -> None:
    for name, kind, data in FILES:
        bare = strip(data, kind)
        for end in {*range(16, len(bare), 97), len(bare) - 1, len(bare) - 2}:
            assert rejected(bare[:end]) == "truncated", (name, end, len(bare))


def test_what_decoders_would_not_take_is_said() -> None:
    jpeg = corpus.save(IMAGE, "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    for marker in (0xC3, 0xC9, 0xCA, 0xF7):
        assert rejected(jpeg[:frame] + bytes([0xFF, marker]) + jpeg[frame + 2 :]) == "unsupported", (
            "arithmetic"
        )
    assert rejected(jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :]) == "unsupported", "12 bits"
    assert rejected(jpeg[:2] + jpeg) == "unreadable"
    assert rejected(jpeg[: frame + 5] + b"\0\0" + jpeg[frame + 7 :]) == "unreadable", "no height"
    assert rejected(b"\xff\xd8\xff\xd9") == "unreadable"
    png = corpus.save(IMAGE, "PNG")
    assert rejected(png.replace(b"IDAT", b"IDAX")) == "unreadable"
    assert rejected(png[:50] + bytes([png[50] ^ 1]) + png[51:]) == "unreadable", "checksum"
    assert rejected(png[:33] + png[-12:]) == "unreadable", "no pixels"
    webp = corpus.save(IMAGE, "WEBP")
    assert rejected(webp[:12] + b"JUNK" + webp[16:]) == "unreadable"
    moving = [corpus.scene(n) for n in range(3)]
    for form in ("PNG", "WEBP"):
        data = corpus.save(moving[0], form, save_all=True, append_images=moving[1:])
        assert header(data).frames > 1
        with pytest.raises(Reject, match="animated"):
            strip(data, form.lower())


def test_any_bytes_are_judged_in_time_that_grows_with_them_alone() -> None:
    size = 4_000_000
    jpeg = corpus.save(IMAGE, "JPEG")
    scan = jpeg.index(b"\xff\xda")
    hostile = {
        "fill": jpeg[:20] + b"\xff" * size,
        "fill and zeros": jpeg[:20] + b"\xff\xff\xff\0" * (size // 4),
        "markers": jpeg[:20] + b"\xff\xd0" * (size // 2),
        "empty segments": jpeg[:20] + b"\xff\xfe\0\2" * (size // 4),
        "scans": jpeg[:scan] + b"\xff\xda\0\2" * (size // 4),
        "scan of fill": jpeg[: scan + 14] + b"\xff" * size,
        "chunks": corpus.save(IMAGE, "PNG")[:33] + corpus.chunk(b"teXt", b"") * (size // 12),
        "RIFF chunks": b"RIFF" + struct.pack("<I", size + 4) + b"WEBP" + b"junk\0\0\0\0" * (size // 8),
        "directories": corpus.save(
            IMAGE, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65535)
        ),
    }
    for name, data in hostile.items():
        start = time.process_time()
        found = rejected(data)
        assert time.process_time() - start < 4, name
        assert found in ("truncated", "unreadable", None), name


def test_damaged_containers_are_headers_or_rejects() -> None:
    draw = random.Random(1)
    seen = set()
    for n in range(3000):
        data = bytearray(FILES[n % len(FILES)][2])
        for _ in range(draw.randrange(1, 8)):
            place = draw.randrange(min(len(data), 300))
            match draw.randrange(3):
                case 0:
                    data[place] = draw.randrange(256)
                case 1:
                    del data[place : place + draw.randrange(9)]
                case 2:
                    data[place:place] = bytes(draw.randrange(9))
        try:
            file = checked(bytes(data), max_bytes=10**6, max_pixels=10**9)
        except Reject as reject:
            seen.add(str(reject))
        else:
            assert strip(file.data, file.header.kind) is file.data
            seen.add("picture")
    assert {"picture", "truncated", "unreadable"} <= seen <= {"picture", *REASONS}


def test_srgb_is_known_by_its_colours() -> None:
    assert is_srgb(SRGB)
    named_otherwise = SRGB.replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be"))
    assert is_srgb(named_otherwise)
    swapped = SRGB.replace(b"rXYZ", b"tmp?").replace(b"gXYZ", b"rXYZ").replace(b"tmp?", b"gXYZ")
    assert not is_srgb(swapped), "whatever its name says"
    for other in (ImageCms.createProfile("LAB"), ImageCms.createProfile("XYZ")):
        assert not is_srgb(ImageCms.ImageCmsProfile(other).tobytes())
    draw = random.Random(0)
    for _ in range(500):
        data = bytearray(SRGB)
        data[draw.randrange(len(data))] = draw.randrange(256)
        is_srgb(bytes(data[: draw.randrange(1, len(data))]))
