"""A decoder's bug, to order: children that run this die of a file as they would of an exploit."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipelines.sources import untrusted
from tests.pipelines.sources import corpus

# Bytes of a sound PNG's own pixels: containers carry nothing else to a child.
MAGIC = {"crash": b"KILL-A", "loop": b"KILL-B", "grow": b"KILL-C"}


def poisoned(seed: int, magic: bytes) -> bytes:
    """A sound PNG whose pixels, stored as they are, spell `magic`."""
    pixels = np.asarray(corpus.scene(seed, (12, 8))).copy()
    pixels[3].ravel()[: len(magic)][:] = list(magic)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    start = corpus.png_that_says(12, 8)
    body = corpus.chunk(b"IDAT", zlib.compress(rows, 0)) + corpus.chunk(b"IEND", b"")
    return start[:33] + body


_open_make = untrusted.open_make


def open_make(told: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What `made` opens, with the bug."""
    make = _open_make(told)

    def call(sent: Mapping[str, Any]) -> dict[str, Any]:
        if MAGIC["crash"] in sent["data"]:
            ctypes.string_at(0)
        while MAGIC["loop"] in sent["data"]:
            pass
        if MAGIC["grow"] in sent["data"]:
            bytearray(2 << 30)
        return make(sent)

    return call


LIES = (
    {"suffix": "../../x", "image": b"\x89PNG\r\n\x1a\n", "width": 1, "height": 1},
    {"suffix": "png", "image": b"PK\x03\x04", "width": 1, "height": 1},
    {"suffix": "png", "image": b"\x89PNG\r\n\x1a\n", "width": "1", "height": 1},
    {"suffix": "png", "image": "text", "width": 1, "height": 1},
    {"suffix": ["png"], "image": b"\x89PNG\r\n\x1a\n", "width": 1, "height": 1},
    {"kept": True},
    {"reject": "a reason of its own"},
    {"reject": {"more": "still"}},
    {},
    {"more": 1},
    [1, 2],
    None,
)


def open_lie(told: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    """A child that was taken over."""
    lies = iter(LIES)
    return lambda sent: next(lies)
