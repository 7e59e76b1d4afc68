"""PNG: chunks (W3C, Portable Network Graphics, third edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from pipelines.sources.containers.facts import PARTS, PROFILE, Header, Piece, orientation
from pipelines.sources.reject import Reject

_SIGNATURE = 8
_CHECKED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Colour type -> bits of a channel: gray, RGB, palette, gray with alpha, RGB with alpha."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_END = b"\0\0\0\0IEND\xaeB`\x82"


def read(data: bytes) -> tuple[Header, list[Piece]]:
    """The picture's header, and its pieces: IHDR, palette, transparency, pixels, end.

    Chunks that give its numbers another colour (gAMA, cHRM, iCCP, cICP) are no pieces: without them every
    reader takes the numbers for sRGB, as all is taken here that has no profile.
    """
    pieces: list[Piece] = [(0, _SIGNATURE)]
    shape: tuple[int, int, int, int] | None = None
    transparent = palette = False
    pixels_end = 0
    frames, exif, xmp, profile = 1, None, None, None
    for name, start, end in _chunks(data):
        body = slice(start + 8, end - 4)
        if (name == b"IHDR") != (shape is None):
            raise Reject("unreadable")
        if name == b"IHDR":
            shape = _shape(data[body])
            pieces.append((start, end))
        elif name == b"IDAT":
            if pixels_end and pixels_end != start:
                raise Reject("unreadable")
            pixels_end = end
            pieces.append((start, end))
        elif name == b"IEND":
            pieces.append((start, end) if end - start == len(_END) else _END)
        elif name == b"PLTE":
            if end - start - 12 > 768 or (end - start) % 3:
                raise Reject("unreadable")
            if shape and shape[3] == 3 and not palette and not pixels_end:
                palette = True
                pieces.append((start, end))
        elif name == b"tRNS":
            if shape and end - start - 12 <= _transparency(shape[3]) and not (transparent or pixels_end):
                transparent = True
                pieces.append((start, end))
        elif not name[0] & 0x20:
            # It is critical, and nobody knows it.
            raise Reject("unreadable")
        elif name == b"acTL" and not pixels_end and end - start >= 20:
            frames = max(1, int.from_bytes(data[start + 8 : start + 12], "big"))
        elif name == b"eXIf":
            exif = data[body]
        elif name == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0", start + 8):
            xmp = data[body]
        elif name == b"iCCP" and not pixels_end and profile is None:
            profile = _profile(data[body])
    if not shape or not pixels_end or (shape[3] == 3 and not palette):
        raise Reject("unreadable")
    width, height, bits, colour = shape
    header = Header(
        kind="png",
        width=width,
        height=height,
        orientation=orientation(exif, xmp),
        frames=frames,
        channels=_CHANNELS[colour],
        bits=bits,
        # One bit is what readers make another kind of picture of.
        plain=not transparent and (colour, bits) in ((0, 2), (0, 4), (0, 8), (2, 8)),
        profile=profile,
    )
    return header, pieces


def is_padded(data: bytes, header: Header) -> bool:
    """Whether the pixels' stream holds more, or goes on longer, than the picture does.

    Args:
        data: without other chunks than `read` gives.
    """
    rows = _rows(header.width, header.height, header.bits * header.channels, interlaced=data[28] == 1)
    stream = zlib.decompressobj()
    seen = 0
    for name, start, end in _chunks(data):
        if name != b"IDAT":
            continue
        left = data[start + 8 : end - 4]
        while left and not stream.eof:
            seen += len(stream.decompress(left, 1 << 16))
            if seen > rows:
                return True
            left = stream.unconsumed_tail
        if left or stream.unused_data:
            return True
    return False


def _rows(width: int, height: int, bits: int, *, interlaced: bool) -> int:
    """Bytes of all rows with their filters."""
    if not interlaced:
        return height * (1 + (width * bits + 7) // 8)
    total = 0
    for x, y, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
                         (0, 1, 1, 2)):  # fmt: skip
        across, down = -(-(width - x) // dx), -(-(height - y) // dy)
        if across > 0 and down > 0:
            total += down * (1 + (across * bits + 7) // 8)
    return total


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each, checked; the last is IEND, whatever follows it."""
    place = _SIGNATURE
    view = memoryview(data)
    for _ in range(PARTS):
        size = int.from_bytes(data[place : place + 4], "big")
        end = place + 12 + size
        if end > len(data) or place + 12 > len(data):
            raise Reject("truncated")
        name = data[place + 4 : place + 8]
        if name in _CHECKED and zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            raise Reject("unreadable")
        yield name, place, end
        if name == b"IEND":
            return
        place = end
    raise Reject("unreadable")


def _shape(said: bytes) -> tuple[int, int, int, int]:
    """Width, height, bits, colour type."""
    if len(said) != 13:
        raise Reject("unreadable")
    width, height, bits, colour, packing, filters, interlace = struct.unpack(">IIBBBBB", said)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31) or bits not in _DEPTHS.get(colour, ()):
        raise Reject("unreadable")
    if packing or filters or interlace > 1:
        raise Reject("unreadable")
    return width, height, bits, colour


def _transparency(colour: int) -> int:
    """Bytes of tRNS at most."""
    return {0: 2, 2: 6, 3: 256}.get(colour, -1)


def _profile(said: bytes) -> bytes | None:
    """Name, a zero, the method (0: deflate), the profile."""
    name, _, packed = said.partition(b"\0")
    if len(name) > 79 or packed[:1] != b"\0":
        return None
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(packed[1:], PROFILE)
    except zlib.error:
        return None
    return profile if stream.eof else None
