"""How values travel to and from a child: parsed, never unpickled, so that nothing a child sends can run."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

_HEAD = 8
"""4 bytes of JSON length, 4 of blob length."""
_LARGEST = 2**31


def packed(value: Any) -> bytes:
    """JSON types and bytes as one frame."""
    blobs: list[Any] = []
    told = json.dumps(_told(value, blobs, [0]), separators=(",", ":")).encode()
    size = sum(map(len, blobs))
    return b"".join((len(told).to_bytes(4, "big"), size.to_bytes(4, "big"), told, *blobs))


def received(stream: socket.socket) -> Iterator[Any]:
    """What comes, value by value, waiting for it; ends where the other side closes."""
    while len(head := stream.recv(_HEAD, socket.MSG_WAITALL)) == _HEAD:
        told, size = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
        # A blob of one value is that value, without another copy.
        text = _all(stream, told)
        yield _value(json.loads(text), _all(stream, size) if size else b"")


class Unpacker:
    """Values out of bytes that come in any pieces."""

    def __init__(self, limit: int = _LARGEST) -> None:
        """`limit`: bytes of one frame; what says that it is longer is none."""
        self.limit = min(limit, _LARGEST)
        self.kept = bytearray()

    def feed(self, data: bytes) -> tuple[list[Any], bool]:
        """The values that are now complete, and whether what follows them is no frame."""
        self.kept += data
        values: list[Any] = []
        while len(self.kept) >= _HEAD:
            told, size = int.from_bytes(self.kept[:4], "big"), int.from_bytes(self.kept[4:8], "big")
            end = _HEAD + told + size
            if end > self.limit:
                return values, True
            if len(self.kept) < end:
                break
            text, blob = bytes(self.kept[_HEAD : _HEAD + told]), bytes(self.kept[_HEAD + told : end])
            del self.kept[:end]
            try:
                values.append(_value(json.loads(text), blob))
            except (ValueError, TypeError, RecursionError):
                return values, True
        return values, False


def _all(stream: socket.socket, size: int) -> bytes:
    data = stream.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError
    return data


def _told(value: Any, blobs: list[Any], end: list[int]) -> Any:
    """`value` as JSON, its bytes moved to `blobs`; `end` counts them."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        start = end[0]
        end[0] += len(value)
        blobs.append(value)
        return {"$bytes": [start, len(value)]}
    if isinstance(value, dict):
        return {str(k): _told(v, blobs, end) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(v, blobs, end) for v in value]
    return value


def _value(told: Any, blob: bytes) -> Any:
    if isinstance(told, dict):
        if set(told) == {"$bytes"}:
            start, size = told["$bytes"]
            return blob[start : start + size]
        return {k: _value(v, blob) for k, v in told.items()}
    if isinstance(told, list):
        return [_value(v, blob) for v in told]
    return told
