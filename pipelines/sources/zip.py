"""A zip archive of images, laid out like a folder; it is never extracted."""

from __future__ import annotations

import functools
import hashlib
import threading
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipelines.places import at_hand
from pipelines.sources.layout import File, Files, Labels, hash_stream, survey
from pipelines.sources.listing import Listing, Reader


@dataclass(frozen=True, kw_only=True)
class ZipSource:
    """A zip archive; all that holds for a folder holds for what is in it."""

    pictures: ClassVar[bool] = True
    """Whether near-duplicates can be told by a perceptual hash."""
    kind: Literal["zip"] = "zip"
    path: Path = field(metadata={"execution": True})
    """The archive. Where it lies decides nothing."""
    labels: Labels = "folders"
    """Whether images are labelled by the name of the folder they lie in, where no metadata says more."""

    def listing(self) -> Listing:
        """`ValueError` if it is no zip archive, or its metadata cannot be read."""
        return survey(ZipFiles(at_hand(self.path)), self.labels)

    def digest(self) -> str:
        """Of what `listing` gives."""
        return self.listing().digest

    def reader(self) -> Reader:
        return ZipFiles(at_hand(self.path))


class ZipFiles(Files):
    """The members of an archive, found by their place in its directory (names may occur twice)."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock = threading.Lock()
        if not path.is_file():
            raise ValueError(f"{path} is not there.")

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"{self.path} is not a zip archive, or is cut short ({error}).") from error

    def list(self) -> list[File]:
        state = self.path.stat()
        files, names = [], {}
        for n, member in enumerate(self._archive.infolist()):
            if member.is_dir():
                continue
            count = names[member.filename] = names.get(member.filename, 0) + 1
            # Members of one name are all inputs; they get names of their own.
            name = member.filename if count == 1 else f"{member.filename}#{count}"
            stamp = (member.file_size, member.CRC, n, state.st_size, state.st_mtime_ns, state.st_ino)
            files.append(File(name, n, stamp))
        return files

    def read(self, where: str | int, limit: int) -> bytes:
        with self._lock:
            return self._from(where, lambda file: file.read(limit + 1))

    def hash(self, where: str | int) -> tuple[str, bytes]:
        with self._lock:
            return self._from(where, hash_stream)

    def digest(self, where: str | int, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def _from(self, where: str | int, call: Any) -> Any:
        try:
            with self._archive.open(self._archive.infolist()[int(where)]) as file:
                return call(file)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            # Damaged, encrypted, or packed by a method that is not built in: this member's trouble alone.
            raise OSError(str(error)) from error
