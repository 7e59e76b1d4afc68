"""The index of a checkpoint: a small JSON that is written last, and makes its parts one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.training.checkpoints.mark import PART, Damaged, Mark
from pipelines.training.checkpoints.part import Part, check_of, count, read_part
from pipelines.training.checkpoints.pieces import dtype_of

if TYPE_CHECKING:
    from cluster.storage import Storage


@dataclass(frozen=True, kw_only=True)
class File:
    """A part, by what tells it from any other."""

    name: str
    size: int
    """Bytes."""
    check: str
    """Of its header, which holds the digests of all else."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a checkpoint consists of."""

    mark: Mark
    attempt: str
    """Of the parts; empty in format 1."""
    files: tuple[File, ...]
    """One a rank, in their order; in format 1 one file of whole tensors, with its sha256."""
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """Name -> kind of number and shape of the whole tensor; empty in format 1, whose file says it."""
    state: dict[str, Any]
    format: int = 2

    def dump(self) -> bytes:
        record: dict[str, Any] = {
            "format": 2,
            **self.mark.facts(),
            "attempt": self.attempt,
            "parts": [[file.name, file.size, file.check] for file in self.files],
            "tensors": {name: [dtype, list(shape)] for name, (dtype, shape) in self.tensors.items()},
            "state": self.state,
        }
        record["check"] = check_of(record)
        return json.dumps(record, sort_keys=True, indent=1).encode()


def parse(data: bytes, name: str) -> Index:
    """The index in a file of that name (`Mark.file`). Raises Damaged where it is not what was written."""
    try:
        record = json.loads(data)
        if record.pop("check") != check_of(record):
            raise Damaged("has other bytes")
        index = _OF[record["format"]](record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged("has an index that is not what was written") from error
    if index.mark.file != name:
        raise Damaged("has another's index")
    return index


def read_index(storage: Storage, name: str) -> Index:
    """Raises Damaged, and FileNotFoundError where there is none."""
    return parse(storage.read(name), name)


def gathered(parts: Iterable[Part]) -> Index:
    """The index of parts that were written together. Raises Damaged where they are not all of it."""
    parts = sorted(parts, key=lambda part: part.rank)
    first = parts[0]
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    stored = 0
    for rank, part in enumerate(parts):
        alike = replace(part, rank=0, state=None, stored=(), size=0, check="")
        if part.rank != rank or alike != replace(first, rank=0, state=None, stored=(), size=0, check=""):
            raise Damaged("has parts that do not belong together")
        for one in part.stored:
            kind = (one.piece.dtype, one.piece.shape)
            if tensors.setdefault(one.piece.tensor, kind) != kind:
                raise Damaged("has parts that do not belong together")
            stored += one.piece.box.numel
    if len(parts) != first.world or first.state is None:
        raise Damaged(f"has {len(parts)} of {first.world} parts")
    if stored != sum(_numel(shape) for _, shape in tensors.values()):
        raise Damaged("has parts that do not make up its tensors")
    return Index(
        mark=first.mark,
        attempt=first.attempt,
        files=tuple(File(name=part.file, size=part.size, check=part.check) for part in parts),
        tensors=tensors,
        state=first.state,
    )


def rebuilt(storage: Storage, names: Iterable[str], mark_name: str) -> Index:
    """The index of a checkpoint that has none, from its parts: of several attempts the latest that is whole.

    Raises Damaged where no attempt left all of its parts.
    """
    attempts: dict[str, list[str]] = {}
    for name in names:
        found = PART.fullmatch(name)
        if found and found[1] == mark_name:
            attempts.setdefault(found[2], []).append(name)
    reason = Damaged("has no index")
    for attempt in sorted(attempts, reverse=True):
        files = attempts[attempt]
        world = int(PART.fullmatch(files[0])[4])  # pyright: ignore[reportOptionalSubscript]
        if len(files) != world:
            reason = Damaged(f"was not finished: {len(files)} of {world} parts are there")
            continue
        try:
            return gathered(read_part(storage, file) for file in files)
        except Damaged as error:
            reason = error
    raise reason


def _numel(shape: tuple[int, ...]) -> int:
    numel = 1
    for length in shape:
        numel *= length
    return numel


def _sharded(record: Mapping[str, Any]) -> Index:
    mark = Mark.of(record)
    files = [
        File(name=str(name), size=count(size), check=str(check)) for name, size, check in record["parts"]
    ]
    tensors = {
        str(name): (str(dtype), tuple(map(count, shape)))
        for name, (dtype, shape) in record["tensors"].items()
    }
    for dtype, _ in tensors.values():
        dtype_of(dtype)
    for file in files:
        found = PART.fullmatch(file.name)
        if not found or found[1] != mark.name or found[2] != record["attempt"]:
            raise Damaged("names parts that are not its own")
    return Index(
        mark=mark,
        attempt=record["attempt"],
        files=tuple(files),
        tensors=tensors,
        state=dict(record["state"]),
    )


def _one_file(record: Mapping[str, Any]) -> Index:
    """Format 1, of the first versions: one file of whole tensors, its sha256 in the index."""
    mark = Mark.of(record)
    if record["tensors"] != f"{mark.name}.safetensors":
        raise Damaged("names a file that is not its own")
    file = File(name=record["tensors"], size=count(record["size"]), check=str(record["sha256"]))
    return Index(mark=mark, attempt="", files=(file,), tensors={}, state=dict(record["state"]), format=1)


_OF = {1: _one_file, 2: _sharded}
