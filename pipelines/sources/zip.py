"""A zip archive of images, laid out like a folder; it is never extracted."""

from __future__ import annotations

import functools
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

from pipelines.places import at_hand, remote
from pipelines.sources import layout
from pipelines.sources.blobs import Blobs
from pipelines.sources.layout import Labels, hidden
from pipelines.sources.source import Found, Part, Reader, Source, Where
from pipelines.sources.tree import File

_DAMAGE = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError)
"""Of a member that is damaged, encrypted, or packed by a method that is not built in."""


@dataclass(frozen=True, kw_only=True)
class ZipSource(Source):
    """A zip archive; all that holds for a folder holds for what is in it."""

    pictures: ClassVar[bool] = True
    kind: Literal["zip"] = "zip"
    path: Path = field(metadata={"execution": True})
    """The archive, a path or an s3, gs or az URL. Where it lies decides nothing."""
    labels: Labels = "folders"
    """Whether images are labelled by the name of the folder they lie in, where no metadata says more."""

    def roots(self) -> list[Part]:
        return [Part(name="/", stamp=Archive.at(self.path).state, leaf=False)]

    def split(self, part: Part) -> list[Part]:
        return layout.parts("", Archive.at(self.path).files())

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        return layout.read(part, Archive.at(self.path).open, limit, known)

    def reader(self, blobs: Blobs) -> Reader:
        return Archive.at(self.path)


class Archive(Reader):
    """The members of an archive, found by their place in its directory (names may occur twice)."""

    def __init__(self, file: BinaryIO, said: str, stamp: str) -> None:
        self.state = stamp
        self._lock = threading.Lock()
        try:
            self._archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"{said} is not a zip archive, or is cut short ({error}).") from error

    @staticmethod
    def at(path: Path) -> Archive:
        """Its directory is read once a process. `ValueError` if it is no archive, or not there."""
        storage = remote(path)
        if storage is None:
            place = at_hand(path).resolve()
            if not place.is_file():
                raise ValueError(f"{path} is not there.")
            state = place.stat()
            return _local(place, f"{state.st_size} {state.st_mtime_ns} {state.st_ino}")
        folder, _, name = storage.url.rpartition("/")
        return _remote(folder, name)

    def files(self) -> list[tuple[File, int]]:
        found, names = [], {}
        for n, member in enumerate(self._archive.infolist()):
            if member.is_dir() or hidden(member.filename):
                continue
            count = names[member.filename] = names.get(member.filename, 0) + 1
            # Members of one name are all inputs; they get names of their own.
            name = member.filename if count == 1 else f"{member.filename}#{count}"
            found.append((File(name, self.stamp(n)), n))
        return found

    def open(self, where: Any) -> BinaryIO:
        try:
            with self._lock:
                return _Member(self._archive.open(self._member(where)), self._lock)  # type: ignore[return-value]
        except _DAMAGE as error:
            raise OSError(str(error)) from error

    def read(self, where: Where, limit: int) -> bytes:
        with self.open(where) as file:
            return layout.up_to(file, limit + 1)

    def stamp(self, where: Where) -> str:
        member = self._member(where)
        return f"{member.file_size} {member.CRC} {where} {self.state}"

    def _member(self, where: Any) -> zipfile.ZipInfo:
        return self._archive.infolist()[int(where)]


class _Member:
    """A member that is read; what is wrong with it is this member's trouble alone."""

    def __init__(self, file: Any, lock: threading.Lock) -> None:
        self._file, self._lock = file, lock

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        try:
            with self._lock:
                return self._file.read(size)
        except _DAMAGE as error:
            raise OSError(str(error)) from error


@functools.lru_cache(maxsize=4)
def _local(path: Path, stamp: str) -> Archive:
    return Archive(path.open("rb"), str(path), stamp)


@functools.lru_cache(maxsize=4)
def _remote(folder: str, name: str) -> Archive:
    from cluster.storage import Storage

    storage: Any = Storage.at(folder)
    path = f"{storage.url.partition('://')[2]}/{name}"
    try:
        told = storage.filesystem.info(path)
    except FileNotFoundError:
        raise ValueError(f"{folder}/{name} is not there.") from None
    file = storage.filesystem.open(path, "rb", block_size=1 << 20)
    return Archive(file, f"{folder}/{name}", f"{told['size']} {told.get('ETag') or told.get('mtime') or ''}")
