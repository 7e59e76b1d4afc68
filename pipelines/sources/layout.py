"""From files in folders to parts of a source: what folders, globs and zip archives have in common."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal

from pipelines.sources import metadata
from pipelines.sources.listing import SPLITS, encode
from pipelines.sources.magic import IMAGE_ENDINGS, kind_of
from pipelines.sources.source import Found, Part
from pipelines.sources.tree import File, Tree

Labels = Literal["folders", "none"]

HEAD = 32
"""Leading bytes by which an image is told by its magic."""
_METADATA_BYTES = 1 << 30
_CHUNK = 512
"""About so many files a part."""
_WALK = 50_000
"""Files that one task lists; folders beyond are listed by others."""

Opened = Callable[[Any], BinaryIO]


def walk(tree: Tree, folder: str, wanted: Callable[[str], bool] = lambda name: True) -> list[Part]:
    """The parts of a folder: chunks of the files below it, and folders that were too many to look into."""
    waiting, files = [folder], []
    while waiting and len(files) < _WALK:
        folders, found = tree.scan(waiting.pop())
        waiting += reversed([name for name in folders if not hidden(name)])
        files += [file for file in found if not hidden(file.name) and wanted(file.name)]
    later = [Part(name=f"{name}/", stamp="", data={"folder": name}, leaf=False) for name in waiting]
    return parts(folder, [(file, file.name) for file in files]) + later


def parts(folder: str, files: Sequence[tuple[File, Any]]) -> list[Part]:
    """Chunks of files, each with what finds it; metadata stand alone.

    By the hash of the name, so that a file more leaves the other chunks as they are.
    """
    number = 1 << max(0, -(-len(files) // _CHUNK) - 1).bit_length()
    chunks: dict[str, list[list[Any]]] = {}
    for file, where in sorted(files, key=lambda pair: encode(pair[0].name)):
        if posixpath.basename(file.name) in metadata.NAMES and file.stamp:
            name = file.name
        else:
            bucket = int.from_bytes(hashlib.sha256(encode(file.name)).digest()[:8], "big") * number >> 64
            name = f"{folder}|{bucket}|{number}"
        chunks.setdefault(name, []).append([file.name, where, file.stamp])
    return [
        Part(name=name, stamp=_digest(chunk), data={"files": chunk}) for name, chunk in sorted(chunks.items())
    ]


def read(part: Part, opened: Opened, limit: int, known: Mapping[str, str]) -> Iterator[Found]:
    """What is in a chunk of files."""
    for name, where, stamp in part.data["files"]:
        if not stamp:
            yield Found(name=name, side="file")
        elif posixpath.basename(name) in metadata.NAMES:
            with opened(where) as file:
                yield from _facts(name, file.read(_METADATA_BYTES))
        elif known.get(name) == stamp:
            yield Found(name=name, where=where, stamp=stamp)
        else:
            yield _file(name, where, stamp, opened, limit)


def hidden(name: str) -> bool:
    """Whether a file or folder is one that systems leave behind."""
    return any(p.startswith(".") or p in ("__MACOSX", "Thumbs.db", "desktop.ini") for p in name.split("/"))


def split_of(name: str) -> str | None:
    """The split that one of the first two folders is called after."""
    folders = [part.lower() for part in name.split("/")[:-1][:2]]
    return next((SPLITS[part] for part in folders if part in SPLITS), None)


def label_of(name: str, *, splits: bool) -> str | None:
    """The folder that a file lies in; with `splits`, one that is not called as a split is."""
    parts = name.split("/")[:-1]
    if splits and split_of(name):
        parts = [part for part in parts if part.lower() not in SPLITS]
    return parts[-1] if parts else None


def _file(name: str, where: Any, stamp: str, opened: Opened, limit: int) -> Found:
    ending = posixpath.splitext(name)[1].lower()
    least = limit + 1 if ending in IMAGE_ENDINGS else 4 * metadata.TEXT_LENGTH if ending == ".txt" else HEAD
    try:
        with opened(where) as file:
            data = up_to(file, least)
            image = ending in IMAGE_ENDINGS or kind_of(data) is not None
            if image and len(data) == least and least <= limit:
                data += up_to(file, limit + 1 - least)
    except OSError:
        return Found(name=name, where=where, reject="unreadable")
    if image:
        return Found(name=name, where=where, stamp=stamp, data=data)
    if ending == ".txt":
        words = metadata.text(data)
        return Found(name=name, stamp=stamp, facts={"text": words} if words else {}, side="text")
    return Found(name=name, stamp=stamp, side="file")


def up_to(file: BinaryIO, size: int) -> bytes:
    """So many bytes or all there are: an unbuffered file may give fewer at a time."""
    pieces, left = [], size
    while left and (piece := file.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _facts(name: str, data: bytes) -> Iterator[Found]:
    for path, facts in metadata.parse(name, data).items():
        split = SPLITS.get(str(facts.pop("split", "")).lower())
        yield Found(name=path, where=name, facts=facts, split=split, side="facts")


def _digest(chunk: Iterable[Sequence[Any]]) -> str:
    hasher = hashlib.sha256()
    for name, _, stamp in chunk:
        hasher.update(encode(name) + b"\0" + stamp.encode() + b"\n")
    return hasher.hexdigest()[:32]
