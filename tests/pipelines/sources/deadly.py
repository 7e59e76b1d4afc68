"""A decoder's bug, to order: children that run this die of a file as they would of an exploit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.sources import untrusted

# Bytes of a sound PNG's own pixels: containers carry nothing else to a child.
MAGIC = {"crash": b"KILL-A", "loop": b"KILL-B", "grow": b"KILL-C"}

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
