"""How much memory a picture takes, from its header: so that a child's limit is one, and costs no picture."""

from __future__ import annotations

from pipelines.sources.containers.facts import Header
from pipelines.sources.decode import reduced
from pipelines.sources.fit import Format

# Bytes a pixel, measured at 9 million pixels with Pillow 13 and libwebp 1.6, and rounded up.
_DECODED = {1: 1, 2: 4, 3: 4, 4: 4}
"""By channels, as Pillow holds them."""
_WEBP = 18
"""Its decoder keeps two canvases, and hands over a copy of one."""
_ENCODING = {"webp": 36, "png": 9, "jpg": 8}
_BESIDE = 4 << 20


def needed(header: Header, size: int, *, scale: float, form: Format | None, made: int) -> int:
    """Bytes at most.

    Args:
        size: bytes of the file.
        scale: at which it is decoded.
        form: to which it is encoded, if it is.
        made: pixels that are encoded.
    """
    area = header.width * header.height
    if header.kind == "jpg" and header.channels != 4:
        shown = -(-area // reduced(scale) ** 2)
        # As an array and as an image; and all coefficients, where scans refine each other.
        decoding = 8 * shown + (2 * header.channels * area if header.progressive else 0)
    else:
        shown = area
        each = _WEBP if header.kind == "webp" else _DECODED[header.channels] * (2 if header.bits == 16 else 1)
        decoding = each * area + (2 * header.channels * area if header.progressive else 0)
    # Copies: in sRGB, flat, upright.
    decoding += shown * ((6 if not header.plain else 0) + (4 if header.profile else 0))
    decoding += 4 * shown if header.orientation != 1 else 0
    encoding = 4 * shown + _ENCODING[form] * made if form else 0
    return max(decoding, encoding) + size + size // 2 + _BESIDE
