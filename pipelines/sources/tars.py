"""A tar that nobody vouches for, member by member from a stream: nothing is followed, and nothing extracted.

POSIX.1-2001 (ustar, pax) and GNU long names. What two readers could take for different members is refused.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MEMBERS = 1_000_000
"""Of one tar."""
NAME_BYTES = 1024
_EXTENDED_BYTES = 1 << 20
"""Of one extended header."""
_EXTENDED_CHAIN = 8
"""Extended headers in front of one member."""
_TAIL = 1 << 26
"""Bytes behind the end mark that are looked at."""
_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 20
_LARGEST = 1 << 62
_USTAR_LARGEST = 8**11
"""Bytes from which on a ustar header cannot state a size."""


class Broken(Exception):
    """The tar cannot be followed further. Its arguments are a reason code and what was seen."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A header that was come upon."""

    name: str
    """As written but for a leading "./"; what is not UTF-8 as surrogates."""
    offset: int
    """Of its bytes in the tar."""
    size: int
    folder: bool = False
    refused: str | None = None
    """Reason code; its bytes are passed over."""


class TarStream:
    """Members in the order of the tar; the bytes of each can be read until the next is asked for.

    Args:
        stream: at the tar's start; one that can seek is not read where nothing is wanted.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._seekable = stream.seekable()
        self._at = 0
        self._left = 0
        self._name = ""

    def members(self) -> Iterator[Member]:
        """Raises `Broken` where the tar does not go on as a tar."""
        for number in range(MEMBERS + 1):
            if number == MEMBERS:
                raise Broken("too_many_members", f"more than {MEMBERS:,}")
            member = self._next()
            if member is None:
                return
            self._name = member.name
            self._left = member.size
            yield member
            self._skip(self._left + -member.size % _BLOCK)
            self._left = 0

    def read(self, limit: int) -> bytes:
        """The bytes of the member that was given last, `limit` at most; `Broken` if the tar ends in them."""
        wanted = min(limit, self._left)
        data = self._take(wanted)
        self._left -= len(data)
        if len(data) < wanted:
            raise Broken("truncated_tar", f"ends within {self._name}")
        return data

    def _next(self) -> Member | None:
        said: dict[str, bytes] = {}
        refused: str | None = None
        for _ in range(_EXTENDED_CHAIN + 1):
            block = self._take(_BLOCK)
            if not block.strip(b"\0") and len(block) == _BLOCK:
                if said or refused:
                    raise Broken("truncated_tar", "ends behind an extended header")
                self._end()
                return None
            if len(block) < _BLOCK:
                raise Broken("truncated_tar", "has no end mark")
            info = _parsed(block)
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
                data = self._extended(info.size)
                found = None if data is None else _records(data)
                shared = info.type == tarfile.XGLTYPE
                if found is None or (shared and found.keys() & {"path", "size", "linkpath"}):
                    refused = "bad_member"
                elif not shared:
                    said |= found
            elif info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                data = self._extended(info.size)
                if data is None:
                    refused = "bad_name"
                elif info.type == tarfile.GNUTYPE_LONGNAME:
                    if "path" in said:
                        refused = "bad_member"
                    said["path"] = data[:-1] if data.endswith(b"\0") else data
            else:
                return self._member(block, info, said, refused)
        raise Broken("truncated_tar", f"has more than {_EXTENDED_CHAIN} extended headers in a row")

    def _member(
        self, block: bytes, info: tarfile.TarInfo, said: dict[str, bytes], refused: str | None
    ) -> Member:
        raw = said.get("path", info.name.encode("utf-8", "surrogateescape"))
        if "path" not in said and block[:100].partition(b"\0")[2].strip(b"\0"):
            refused = refused or "bad_name"
        size = info.size
        if "size" in said:
            text = said["size"]
            if not re.fullmatch(rb"\d{1,18}", text):
                raise Broken("truncated_tar", f"a member's size is {text[:20]!r}")
            # A writer states the size here where the header cannot; two sizes are two different tars.
            if int(text) != size and not (size == 0 and int(text) >= _USTAR_LARGEST):
                refused = refused or "bad_member"
            size = int(text)
        if info.type == tarfile.GNUTYPE_SPARSE:
            self._sparse_map(block)
        if any(name.startswith("GNU.sparse.") for name in said) or info.type == tarfile.GNUTYPE_SPARSE:
            refused = refused or "not_a_regular_file"
        folder = info.type == tarfile.DIRTYPE
        regular = info.type in tarfile.REGULAR_TYPES and info.type != tarfile.GNUTYPE_SPARSE
        if not (regular or folder):
            refused = refused or "not_a_regular_file"
        if info.type in _WITHOUT_BYTES:
            if size and refused is None:
                refused = "bad_member"
            size = 0
        name = raw.decode("utf-8", "surrogateescape")
        while name.startswith("./"):
            name = name[2:]
        if not folder and not _is_name(name, raw):
            refused = refused or "bad_name"
        return Member(name=name, offset=self._at, size=size, folder=folder, refused=refused)

    def _sparse_map(self, block: bytes) -> None:
        """Passes over the blocks that go on with an old sparse file's map."""
        more, passed = block[482], 0
        while more:
            block = self._take(_BLOCK)
            passed += 1
            if len(block) < _BLOCK or passed * _BLOCK > _EXTENDED_BYTES:
                raise Broken("truncated_tar", "breaks within a sparse file's map")
            more = block[504]

    def _extended(self, size: int) -> bytes | None:
        """The bytes of an extended header; None, and passed over, if they are too many."""
        if size > _EXTENDED_BYTES:
            self._skip(size + -size % _BLOCK)
            return None
        data = self._take(size)
        if len(data) < size:
            raise Broken("truncated_tar", "ends within an extended header")
        self._skip(-size % _BLOCK)
        return data

    def _end(self) -> None:
        """Behind the first empty block only empty ones may follow."""
        left = _TAIL
        while left and (piece := self._take(min(left, _PIECE))):
            left -= len(piece)
            if piece.count(0) != len(piece):
                raise Broken("trailing_bytes", f"from byte {self._at - len(piece)} on")
        if not left and self._take(1):
            raise Broken("trailing_bytes", f"more than {_TAIL:,}")

    def _take(self, size: int) -> bytes:
        """So many bytes, or all that are left."""
        pieces, left = [], size
        while left and (piece := self._stream.read(min(left, 16 * _PIECE))):
            pieces.append(piece)
            left -= len(piece)
        self._at += size - left
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _skip(self, size: int) -> None:
        if self._seekable and size > _BLOCK:
            # Behind the end nothing is read, which the next header tells.
            self._at += size
            self._stream.seek(self._at)
            return
        while size:
            passed = len(self._take(min(size, _PIECE)))
            if not passed:
                raise Broken("truncated_tar", f"ends within {self._name}" if self._name else "ends early")
            size -= passed


_WITHOUT_BYTES = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise Broken("truncated_tar", f"goes on with what is no header ({error})") from error
    if not 0 <= info.size < _LARGEST:
        raise Broken("truncated_tar", f"a member's size is {info.size}")
    return info


def _records(data: bytes) -> dict[str, bytes] | None:
    """The records of a pax header; None where a length lies."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        match = _RECORD.match(data, at)
        if match is None:
            return None
        end = at + int(match[1])
        if not match.end() < end <= len(data) or data[end - 1] != 0x0A:
            return None
        name = match[2].decode("utf-8", "replace")
        if name in found:
            return None
        found[name] = data[match.end() : end - 1]
        at = end
    return found


_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]{1,256})=")


def _is_name(name: str, raw: bytes) -> bool:
    parts = name.split("/")
    return (
        0 < len(raw) <= NAME_BYTES
        and not _CONTROL.search(name)
        and not any(part in ("", ".", "..") for part in parts)
        and "\\" not in name
        and not re.match(r"[A-Za-z]:", name)
    )
