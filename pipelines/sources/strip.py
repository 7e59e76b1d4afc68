"""The same picture without anything that is not picture: no place, owner, thumbnail or passenger."""

from __future__ import annotations

from pipelines.sources.containers.facts import joined
from pipelines.sources.header import parsed
from pipelines.sources.reject import Reject


def strip(data: bytes, kind: str) -> bytes:
    """The file's first picture, its coded pixels as they are; `data` itself where nothing is left out.

    Kept are tables, frame and scans of a JPEG with what decides its colour transform (JFIF without thumbnail,
    Adobe), a PNG's IHDR, palette, transparency and pixels, a WebP's pixels and transparency. Gone
    are EXIF, XMP, comments, texts, thumbnails, further pictures and what follows the end; ICC profile and
    orientation too: what they say must have been done to the pixels, or be sRGB and upright.

    Raises:
        Reject: truncated or unreadable; animated, which has no first picture that is the whole.
    """
    header, pieces = parsed(data)
    if header.kind != kind:
        raise Reject("unreadable")
    if header.frames > 1:
        raise Reject("animated")
    return joined(data, pieces)
