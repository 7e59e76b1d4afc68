"""What a file is, by its first bytes; its name proves nothing."""

from __future__ import annotations

import re

DECODED = ("jpg", "png", "webp")
"""Kinds that are decoded; the others are known only to be told apart from what is no image at all."""

IMAGE_ENDINGS = frozenset(
    [
        *(
            ".jpg",
            ".jpeg",
            ".jpe",
            ".jfif",
            ".png",
            ".apng",
            ".webp",
            ".gif",
            ".bmp",
            ".tif",
            ".tiff",
            ".heic",
        ),
        *(".heic", ".heif", ".avif", ".jp2", ".jxl", ".ico", ".ppm", ".pgm", ".svg", ".psd", ".tga", ".raw"),
        *(".dng", ".cr2", ".nef", ".arw"),
    ]
)

_MAGIC = {
    "jpg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"RIFF....WEBP",
    "gif": rb"GIF8[79]a",
    "bmp": rb"BM....\x00\x00\x00\x00",
    "tiff": rb"II\*\x00|MM\x00\*",
    "heif": rb"....ftyp(heic|heix|mif1|msf1|hevc|heim)",
    "avif": rb"....ftypavi[fs]",
    "jp2": rb"\x00\x00\x00\x0cjP  ",
    "jxl": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "psd": rb"8BPS",
}
_PATTERNS = {kind: re.compile(pattern, re.DOTALL) for kind, pattern in _MAGIC.items()}


def kind_of(head: bytes) -> str | None:
    """jpg, png, webp, gif, ...; None for bytes that begin like no image."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.match(head)), None)
