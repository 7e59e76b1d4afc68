"""A part of a checkpoint: what one rank wrote, as a safetensors file that says what it is.

Its header holds where the training stood, which attempt wrote it as which part of how many, of which tensor
each piece is and where, and the sha256 of each; and a digest of itself. So an index can be made anew from
the parts alone, and nobody uses a byte that was not checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.training.checkpoints.mark import PART, Damaged, Mark
from pipelines.training.checkpoints.pieces import Box, Piece

if TYPE_CHECKING:
    from cluster.storage import Storage

OWN = "checkpoint"
"""Our entry in the file format's metadata."""
LIMIT = 100_000_000
"""Bytes of a header, of the file format's own."""
GLANCE = 1 << 18
"""Bytes that are asked for first, in which most headers end."""


def check_of(record: Mapping[str, Any]) -> str:
    """sha256 of a JSON object, which guards it itself: a flipped digit in it would otherwise be believed."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def count(value: Any) -> int:
    """A number that counts something; Damaged if it is none."""
    if type(value) is not int or value < 0:
        raise Damaged("has a number that counts nothing")
    return value


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A piece in a file."""

    piece: Piece
    offset: int
    """Of its first byte in the file."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the header of a part says."""

    mark: Mark
    attempt: str
    """16 hex digits: of parts that were written together, and no others."""
    rank: int
    world: int
    state: dict[str, Any] | None
    """What is no tensor; in rank 0's part only."""
    stored: tuple[Stored, ...]
    size: int
    """Bytes of the whole file."""
    check: str
    """Of the header."""

    @property
    def file(self) -> str:
        return file_of(self.mark, self.attempt, self.rank, self.world)


def file_of(mark: Mark, attempt: str, rank: int, world: int) -> str:
    return f"{mark.name}.{attempt}.{rank:05d}-of-{world:05d}.safetensors"


def room_for(pieces: Sequence[Piece], state: Mapping[str, Any] | None) -> int:
    """Bytes above those of any header for them."""
    return (
        4096
        + sum(3 * len(piece.key) + 100 * len(piece.shape) + 400 for piece in pieces)
        + (0 if state is None else 2 * len(json.dumps(state)))
    )


def header_of(
    pieces: Sequence[Piece],
    digests: Sequence[str],
    *,
    mark: Mark,
    attempt: str,
    rank: int,
    world: int,
    state: Mapping[str, Any] | None,
) -> bytes:
    """What a part begins with, before its pieces in this order."""
    own: dict[str, Any] = {
        "format": 2,
        **mark.facts(),
        "attempt": attempt,
        "rank": rank,
        "world": world,
        "pieces": {
            piece.key: [piece.tensor, list(piece.shape), list(piece.box.offsets), digest]
            for piece, digest in zip(pieces, digests, strict=True)
        },
    }
    if state is not None:
        own["state"] = dict(state)
    entries, position = {}, 0
    for piece in pieces:
        entries[piece.key] = {
            "dtype": piece.dtype,
            "shape": list(piece.box.shape),
            "data_offsets": [position, position + piece.size],
        }
        position += piece.size
    check = check_of({"own": own, "entries": entries})
    metadata = {OWN: json.dumps(own, sort_keys=True), "check": check}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_part(storage: Storage, file: str) -> Part:
    """The part of that name by its header alone. Raises Damaged where that is not what was written."""
    named = PART.fullmatch(file)
    try:
        size = storage.size(file)
        data = storage.read_range(file, 0, min(size, GLANCE))
        length = 8 + int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > min(size, LIMIT):
            raise Damaged(f"has a part that is cut short ({file})")
        if length > len(data):
            data += storage.read_range(file, len(data), length - len(data))
    except FileNotFoundError:
        raise Damaged(f"lacks a part ({file})") from None
    except EOFError:
        raise Damaged(f"has a part that is cut short ({file})") from None
    try:
        part = _parsed(data[8:length], size=size, start=length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"has a part that is not what was written ({file})") from error
    if part.file != file or named is None:
        raise Damaged(f"has another's part in the place of one of its own ({file})")
    return part


def _parsed(text: bytes, *, size: int, start: int) -> Part:
    entries = json.loads(text)
    metadata = entries.pop("__metadata__")
    own = json.loads(metadata[OWN])
    if metadata["check"] != check_of({"own": own, "entries": entries}) or own["format"] != 2:
        raise Damaged("has a header of other bytes")
    if own["pieces"].keys() != entries.keys():
        raise Damaged("names other pieces than it has")
    stored = []
    for key, (tensor, shape, offsets, digest) in own["pieces"].items():
        entry = entries[key]
        first, last = map(count, entry["data_offsets"])
        box = Box(tuple(map(count, offsets)), tuple(map(count, entry["shape"])))
        piece = Piece(tensor=str(tensor), dtype=entry["dtype"], shape=tuple(map(count, shape)), box=box)
        if not box.inside(piece.shape) or last - first != piece.size or start + last > size:
            raise Damaged("has a piece beyond its end")
        stored.append(Stored(piece=piece, offset=start + first, sha256=str(digest)))
    if start + sum(one.piece.size for one in stored) != size:
        raise Damaged("is not of its size")
    return Part(
        mark=Mark.of(own),
        attempt=str(own["attempt"]),
        rank=count(own["rank"]),
        world=count(own["world"]),
        state=own.get("state"),
        stored=tuple(sorted(stored, key=lambda one: one.offset)),
        size=size,
        check=metadata["check"],
    )
