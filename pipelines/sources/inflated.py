"""Compressed tars as streams, with an end to what a few bytes may become."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO

from pipelines.sources.tars import Broken

ENDINGS = (".tar.gz", ".tgz", ".tar.zst", ".tzst")
"""Of names of tars that are unpacked while they are read."""
RATIO = 200
"""Unpacked bytes for each packed one, past the first `FREE`; images are packed already."""
FREE = 1 << 26
TOTAL = 1 << 40
"""Unpacked bytes of one tar."""


def inflated(stream: BinaryIO, name: str) -> BinaryIO:
    """The bytes of a .gz or .zst; reading raises `Broken` where they end early, are damaged or swell."""
    lower = name.lower()
    if lower.endswith((".gz", ".tgz")):
        source: Any = gzip.GzipFile(fileobj=stream, mode="rb")
    else:
        import pyarrow as pa

        source = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    return io.BufferedReader(_Counted(source, stream), 1 << 20)


class _Counted(io.RawIOBase):
    def __init__(self, source: Any, packed: BinaryIO) -> None:
        self._source, self._packed, self._size = source, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except (EOFError, zlib.error, OSError) as error:
            raise Broken("truncated_tar", f"cannot be unpacked further ({error})") from error
        self._size += len(data)
        if self._size > TOTAL or self._size > FREE + RATIO * self._packed.tell():
            raise Broken("bomb", f"{self._size:,} bytes from {self._packed.tell():,}")
        buffer[: len(data)] = data
        return len(data)
