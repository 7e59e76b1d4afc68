"""What a file's container says of its picture, and the pieces of the file that are the picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

PROFILE = 8 << 20
"""Bytes of an ICC profile at most; a longer one counts as broken, and is not inflated further."""
PARTS = 1 << 18
"""Segments or chunks of a file at most."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a container says of its picture."""

    kind: str
    """jpg, png or webp."""
    width: int
    """px, as stored: before it is turned upright."""
    height: int
    orientation: int = 1
    """How to turn it upright, 1 to 8 as in EXIF."""
    frames: int = 1
    """More than one: animated."""
    channels: int = 3
    """As stored: a palette is 1, CMYK and RGB with alpha are 4."""
    bits: int = 8
    """Of a channel."""
    plain: bool = True
    """Whether its pixels are gray or RGB of 8 bits or less, without transparency or a palette."""
    progressive: bool = False
    """A JPEG whose coefficients a decoder must hold all at once."""
    profile: bytes | None = field(default=None, repr=False)
    """ICC profile."""

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height once it is turned upright."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


Piece = tuple[int, int] | bytes
"""A part of a file that is kept: where it lies, or what stands in its place."""


def joined(data: bytes, pieces: Sequence[Piece]) -> bytes:
    """The pieces as one; `data` itself where they are all of it."""
    end = 0
    for piece in pieces:
        if isinstance(piece, bytes) or piece[0] != end:
            break
        end = piece[1]
    else:
        if end == len(data):
            return data
    view = memoryview(data)
    whole = b"".join(piece if isinstance(piece, bytes) else view[slice(*piece)] for piece in pieces)
    return data if whole == data else whole


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """1 to 8; 1 where neither says anything that makes sense.

    Args:
        exif: TIFF structure, as it follows "Exif\\0\\0".
        xmp: packet, asked only where `exif` has no orientation.
    """
    found = _in_exif(exif) if exif else None
    if found is None and xmp and (match := _IN_XMP.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


_ORIENTATION = 0x0112
_SIZES = {1: 1, 3: 2, 4: 4}
"""Bytes of an integer by EXIF type."""
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def _in_exif(exif: bytes) -> int | None:
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return None

    def number(start: int, size: int) -> int:
        return int.from_bytes(exif[start : start + size], "little" if exif[0] == ord("I") else "big")

    start = number(4, 4)
    for n in range(min(number(start, 2), (len(exif) - start) // 12)):
        entry = start + 2 + 12 * n
        if number(entry, 2) == _ORIENTATION and (size := _SIZES.get(number(entry + 2, 2))):
            return number(entry + 8, size)
    return None
