"""What a file says of its picture before anything is decoded."""

from __future__ import annotations

from pipelines.sources.containers import jpeg, png, webp
from pipelines.sources.containers.facts import Header, Piece
from pipelines.sources.magic import DECODED, kind_of
from pipelines.sources.reject import Reject

_READERS = {"jpg": jpeg.read, "png": png.read, "webp": webp.read}


def header(data: bytes) -> Header:
    """Kind, size, orientation, frames and colours of a JPEG, PNG or WebP file; of a JPEG's first picture.

    Plain Python in time that grows with the bytes alone. The container is checked to its end, the pixels not.

    Raises:
        Reject: empty, not_an_image, unsupported, truncated or unreadable. Size and frames are the caller's.
    """
    return parsed(data)[0]


def parsed(data: bytes) -> tuple[Header, list[Piece]]:
    """The header, and the parts of the file that are its picture."""
    if not data:
        raise Reject("empty")
    kind = kind_of(data)
    if kind is None:
        raise Reject("not_an_image")
    if kind not in DECODED:
        raise Reject("unsupported")
    return _READERS[kind](data)
