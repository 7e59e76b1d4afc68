"""WebP: chunks in a RIFF file (RFC 9649)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pipelines.sources.containers.facts import PARTS, PROFILE, Header, Piece, orientation
from pipelines.sources.reject import Reject

_HEAD = 12
_ALPHA = 0x10
"""VP8X's flag for transparency; all others speak of chunks that are not kept."""


def read(data: bytes) -> tuple[Header, list[Piece]]:
    """The picture's header, and its pieces: pixels, and transparency with the VP8X that it needs."""
    if len(data) < _HEAD:
        raise Reject("truncated")
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise Reject("truncated")
    canvas = picture = alpha = None
    frames: list[tuple[int, int]] = []
    exif = xmp = profile = None
    for name, start, size in _chunks(data, _HEAD, end):
        if name == b"VP8X" and start == _HEAD + 8:
            canvas = _canvas(data[start : start + size])
        elif name in (b"VP8 ", b"VP8L") and picture is None:
            picture = name, start, size
        elif name == b"ALPH" and alpha is None and picture is None and canvas:
            alpha = start, size
        elif name == b"ANMF":
            frames.append((start, size))
        elif name == b"EXIF":
            exif = data[start : start + size].removeprefix(b"Exif\0\0")
        elif name == b"XMP ":
            xmp = data[start : start + size]
        elif name == b"ICCP" and picture is None and size <= PROFILE:
            profile = data[start : start + size]
    if frames and canvas:
        if picture or len(frames) > 1:
            return Header(kind="webp", width=canvas[0], height=canvas[1], frames=max(2, len(frames))), []
        picture, alpha = _only_frame(data, frames[0], canvas)
    if picture is None:
        raise Reject("unreadable")
    name, start, size = picture
    width, height, inner = _lossy(data, start, size) if name == b"VP8 " else _lossless(data, start, size)
    if canvas and canvas != (width, height):
        raise Reject("unreadable")
    if name == b"VP8L":
        alpha = None
    transparent = inner or alpha is not None
    chunks: list[Piece] = []
    if alpha is not None:
        shape = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks.append(b"VP8X" + struct.pack("<I", 10) + bytes([_ALPHA, 0, 0, 0]) + shape)
        chunks += _piece(data, *alpha)
    chunks += _piece(data, start, size)
    total = sum(len(chunk) if isinstance(chunk, bytes) else chunk[1] - chunk[0] for chunk in chunks)
    head: Piece = (0, _HEAD)
    if total + 4 != end - 8:
        head = b"RIFF" + struct.pack("<I", total + 4) + b"WEBP"
    header = Header(
        kind="webp",
        width=width,
        height=height,
        orientation=orientation(exif, xmp),
        channels=4 if transparent else 3,
        plain=not transparent,
        profile=profile,
    )
    return header, [head, *chunks]


def _chunks(data: bytes, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name of each, where its content starts, and how long that is."""
    for _ in range(PARTS):
        if place + 8 > end:
            return
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if place + 8 + size > end:
            raise Reject("truncated")
        yield data[place : place + 4], place + 8, size
        place += 8 + size + size % 2
    raise Reject("unreadable")


def _piece(data: bytes, start: int, size: int) -> list[Piece]:
    """A chunk from its name on, the byte that makes its length even being zero."""
    if size % 2 == 0:
        return [(start - 8, start + size)]
    if data[start + size : start + size + 1] == b"\0":
        return [(start - 8, start + size + 1)]
    return [(start - 8, start + size), b"\0"]


def _canvas(said: bytes) -> tuple[int, int]:
    if len(said) != 10:
        raise Reject("unreadable")
    return 1 + int.from_bytes(said[4:7], "little"), 1 + int.from_bytes(said[7:10], "little")


def _only_frame(
    data: bytes, frame: tuple[int, int], canvas: tuple[int, int]
) -> tuple[tuple[bytes, int, int] | None, tuple[int, int] | None]:
    """Picture and transparency of an animation's one frame, which fills the canvas."""
    start, size = frame
    said = data[start : start + 16]
    shape = 1 + int.from_bytes(said[6:9], "little"), 1 + int.from_bytes(said[9:12], "little")
    if size < 16 or any(said[:6]) or shape != canvas:
        raise Reject("unreadable")
    picture = alpha = None
    for name, inner, length in _chunks(data, start + 16, start + size):
        if name in (b"VP8 ", b"VP8L") and picture is None:
            picture = name, inner, length
        elif name == b"ALPH" and alpha is None and picture is None:
            alpha = inner, length
    return picture, alpha


def _lossy(data: bytes, start: int, size: int) -> tuple[int, int, bool]:
    """Width, height, and False: transparency is a chunk of its own."""
    said = data[start : start + min(size, 10)]
    if len(said) < 10 or said[0] & 1 or said[3:6] != b"\x9d\x01\x2a":
        raise Reject("unreadable")
    width, height = (int.from_bytes(said[n : n + 2], "little") & 0x3FFF for n in (6, 8))
    if not (width and height):
        raise Reject("unreadable")
    return width, height, False


def _lossless(data: bytes, start: int, size: int) -> tuple[int, int, bool]:
    """Width, height, and whether it has transparency."""
    said = data[start : start + min(size, 5)]
    if len(said) < 5 or said[0] != 0x2F:
        raise Reject("unreadable")
    word = int.from_bytes(said[1:5], "little")
    if word >> 29:
        raise Reject("unreadable")
    return 1 + (word & 0x3FFF), 1 + (word >> 14 & 0x3FFF), bool(word >> 28 & 1)
