"""JPEG: segments up to the end of the first picture (ITU-T T.81, annex B)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipelines.sources.containers.facts import PARTS, PROFILE, Header, Piece, orientation
from pipelines.sources.reject import Reject

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_DHT, _DQT, _DRI = 0xC4, 0xDB, 0xDD
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_TAKEN = (0xC0, 0xC1, 0xC2)
"""Frames that browsers and libjpeg decode: baseline, sequential and progressive, all Huffman-coded."""
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7)
"""Lossless, hierarchical and arithmetic-coded ones, and JPEG-LS."""

# Both find a marker's 0xFF in one pass, whatever stands before it.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""In entropy-coded data 0xFF 0x00 is a byte of it, and RST0 to RST7 part its intervals."""

_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"


def read(data: bytes) -> tuple[Header, list[Piece]]:
    """The first picture's header, and its pieces: tables, frame, scans, and what decides its colours."""
    frame: tuple[int, bytes] | None = None
    scanned = False
    pieces: list[Piece] = [(0, 2)]
    exif, xmp, profiles = b"", None, []
    for marker, start, end in _segments(data):
        body = slice(start + 4, end)
        if marker in _TAKEN:
            if frame is not None:
                raise Reject("unreadable")
            frame = marker, data[body]
            pieces.append((start, end))
        elif marker in _OTHER_FRAMES:
            raise Reject("unsupported")
        elif marker == _SOS:
            if frame is None:
                raise Reject("unreadable")
            scanned = True
            pieces.append((start, end))
        elif marker in (_DHT, _DQT, _DRI):
            pieces.append((start, end))
        elif marker == _EOI:
            if not scanned or frame is None:
                raise Reject("unreadable")
            pieces.append((start, end))
        elif not scanned:
            # Behind the first scan readers no longer ask such segments how to show the picture.
            said = data[body]
            if marker == _APP0:
                pieces += _jfif(said, start, end)
            elif marker == _APP14:
                pieces += _adobe(said, start, end)
            elif marker == _APP1 and said.startswith(_EXIF):
                exif += said[len(_EXIF) :]
            elif marker == _APP1 and said.startswith(_XMP):
                xmp = said[len(_XMP) :]
            elif marker == _APP2 and said.startswith(_ICC):
                profiles.append(said[len(_ICC) :])
    assert frame is not None
    kind, said = frame
    if len(said) < 6 or len(said) != 6 + 3 * said[5]:
        raise Reject("unreadable")
    bits, channels = said[0], said[5]
    height, width = int.from_bytes(said[1:3], "big"), int.from_bytes(said[3:5], "big")
    if not (width and height and channels in (1, 3, 4)):
        raise Reject("unreadable")
    if bits != 8:
        raise Reject("unsupported")
    header = Header(
        kind="jpg",
        width=width,
        height=height,
        orientation=orientation(exif, xmp),
        channels=channels,
        plain=channels != 4,
        progressive=kind == 0xC2,
        profile=_profile(profiles),
    )
    return header, pieces


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each, the end of the image last; a scan's data belong to its segment."""
    place = 2
    for _ in range(PARTS):
        found = _MARKER.search(data, place)
        if found is None:
            raise Reject("truncated")
        start, marker = found.start(), data[found.start() + 1]
        if marker == _EOI:
            yield marker, start, start + 2
            return
        if marker == _SOI:
            raise Reject("unreadable")
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            place = start + 2
            continue
        size = int.from_bytes(data[start + 2 : start + 4], "big")
        place = start + 2 + size
        if place > len(data) or start + 4 > len(data):
            raise Reject("truncated")
        if size < 2:
            raise Reject("unreadable")
        if marker == _SOS:
            found = _AFTER_SCAN.search(data, place)
            if found is None:
                raise Reject("truncated")
            place = found.start()
        yield marker, start, place
    raise Reject("unreadable")


def _jfif(said: bytes, start: int, end: int) -> list[Piece]:
    """What says that colours are YCbCr, without the thumbnail."""
    if not said.startswith(b"JFIF\0") or len(said) < 14:
        return []
    if len(said) == 14 and said[12:14] == b"\0\0":
        return [(start, end)]
    return [b"\xff\xe0\x00\x10" + said[:12] + b"\0\0"]


def _adobe(said: bytes, start: int, end: int) -> list[Piece]:
    """What says whether colours are RGB, YCbCr, CMYK or YCCK."""
    if not said.startswith(b"Adobe") or len(said) < 12:
        return []
    return [(start, end)] if len(said) == 12 else [b"\xff\xee\x00\x0e" + said[:12]]


def _profile(parts: list[bytes]) -> bytes | None:
    """Parts carry their number (from 1) and how many there are."""
    parts = sorted(part for part in parts if len(part) > 2)
    if not parts or len(parts) != parts[0][1] or sum(map(len, parts)) > PROFILE:
        return None
    return b"".join(part[2:] for part in parts)
