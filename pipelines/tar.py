"""A tar with nothing in it but names and bytes, so that equal members give equal tars."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import BinaryIO

Span = tuple[int, int, str]
"""Byte offset in the tar, size, sha256 hex."""

_USTAR_NAME = 100


class TarWriter:
    """Writes USTAR, and remembers where each member lies."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0
        self.sha256 = ""
        self.spans: dict[str, Span] = {}

    def add(self, name: str, data: bytes, digest: str | None = None) -> None:
        """`ValueError` if the name is taken, or longer than 100 bytes. `digest`: sha256 hex, where known."""
        if name in self.spans:
            raise ValueError(f"The shard has two members named {name!r}.")
        self._write(header(name, len(data)))
        self.spans[name] = (self.size, len(data), digest or hashlib.sha256(data).hexdigest())
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))

    def close(self) -> None:
        """Ends the tar; only now has it a sha256."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self.sha256 = self._hash.hexdigest()

    def names(self) -> list[str]:
        return sorted(self.spans)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)


def scan(path: Path) -> TarWriter | None:
    """The members of a tar as they lie in it; None if it is not one of ours, whole."""
    copy = io.BytesIO()
    found = TarWriter(copy)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                # A link would be followed to another member.
                data = tar.extractfile(member) if member.isreg() else None
                if data is None:
                    return None
                found.add(member.name, data.read())
        found.close()
    except (tarfile.TarError, ValueError, OSError, EOFError):
        return None
    # Writing what was read gives the same bytes only if nothing was cut off, damaged or added.
    return found if copy.getvalue() == path.read_bytes() else None


def header(name: str, size: int) -> bytes:
    """A regular file's USTAR header (POSIX.1-1988), as `tarfile` writes it in a tenth of the time."""
    path = name.encode()
    if len(path) > _USTAR_NAME:
        raise ValueError(f"The member name {name!r} is longer than {_USTAR_NAME} bytes.")
    if size >= 8**11:
        raise ValueError(f"{name} has {size} bytes; a tar takes 8 GiB at most.")
    fields = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"0" * 11 + b"\0"
    rest = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    # The checksum counts itself as spaces.
    checksum = sum(path) + sum(fields) + 8 * 32 + sum(rest)
    return path.ljust(100, b"\0") + fields + b"%06o\0 " % checksum + rest
