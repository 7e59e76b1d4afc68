"""Where bytes live: a folder on a disk or under a bucket; a file in it exists whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from io import BufferedReader
from pathlib import Path
from urllib.parse import unquote, urlsplit

PARTIAL = ".partial"
"""Ending of a file that is still being written; never listed, removed with its folder."""

_PART = re.compile(r"[^/\\\x00-\x1f\x7f]+")


class Storage(ABC):
    """One folder. Names are relative, with "/" between parts. Picklable, so that workers can be given one."""

    url: str
    """What `Storage.at` takes to open the same folder elsewhere."""

    @staticmethod
    def at(url: str | Path) -> Storage:
        """A path or a file, s3, gs or az URL; `ValueError` for any other scheme."""
        text = os.fspath(url)
        scheme, separator, _ = text.partition("://")
        if not separator:
            return LocalStorage(Path(text))
        parts = urlsplit(text)
        if scheme == "file":
            if parts.netloc not in ("", "localhost"):
                raise ValueError(f"{text}: a file URL has three slashes, file:///path.")
            return LocalStorage(Path(unquote(parts.path)))
        from cluster.objects import PACKAGES, ObjectStorage

        if scheme not in PACKAGES:
            raise ValueError(f"{scheme}:// is not a store; give a path or a file, s3, gs or az URL.")
        if "@" in parts.netloc and scheme != "az":
            raise ValueError(f"A {scheme}:// URL must not hold credentials; put them into the environment.")
        if not parts.netloc:
            raise ValueError(f"{text}: a {scheme} URL names a bucket, {scheme}://bucket/folder.")
        return ObjectStorage(text.rstrip("/"))

    @abstractmethod
    def folder(self, name: str) -> Storage:
        """The folder of that name in this one; it need not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """`FileNotFoundError` if there is none."""

    @abstractmethod
    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; `EOFError` where the file ends before."""

    @abstractmethod
    def exists(self, name: str) -> bool: ...

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes; `FileNotFoundError` if there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Sorted names of the files whose name starts with `prefix`, at any depth."""

    @abstractmethod
    def files(self, *, partial: bool = False) -> dict[str, tuple[int, float]]:
        """Size and time of the last change (seconds since 1970) of all files, by name.

        `partial`: those that are still being written, or were left by a process that died, and no others.
        """

    @abstractmethod
    def folders(self) -> list[str]:
        """Sorted names of the folders directly in this one."""

    @abstractmethod
    def put_if_absent(self, name: str, source: bytes | memoryview | Path) -> bool:
        """Writes the file whole and durably; False, and nothing changed, if there is one.

        Of several writers exactly one wins.
        """

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Atomic overwrite, for what is not a commit."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Nothing happens if there is none."""

    @abstractmethod
    def delete_folder(self) -> None:
        """Removes this folder and all in it."""

    @abstractmethod
    def local(self, name: str) -> Path:
        """The file itself, or a cached copy of this version of it; to be read only."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that can still be written; None where that has no answer."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __repr__(self) -> str:
        return f"Storage.at({self.url!r})"


def check_name(name: str) -> str:
    """The name itself; `ValueError` where it could leave its folder or hide in it."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or not _PART.fullmatch(part) for part in parts):
        raise ValueError(f"{name!r} is not a name of a file in a store.")
    return name


class LocalStorage(Storage):
    """A folder of this machine, or of a file system that its machines share."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(os.path.expanduser(path)))
        self.url = str(self.path)

    def folder(self, name: str) -> LocalStorage:
        return LocalStorage(self.path / check_name(name))

    def read(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        with self._path(name).open("rb") as file:
            file.seek(offset)
            return whole(file.read(size), name, size)

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def size(self, name: str) -> int:
        return self._path(name).stat().st_size

    def list(self, prefix: str = "") -> list[str]:
        top = self.path / prefix.rpartition("/")[0]
        return sorted(
            name
            for folder, _, files in os.walk(top)
            for file in files
            if not file.endswith(PARTIAL)
            and (name := (Path(folder) / file).relative_to(self.path).as_posix()).startswith(prefix)
        )

    def files(self, *, partial: bool = False) -> dict[str, tuple[int, float]]:
        found = {}
        for folder, _, files in os.walk(self.path):
            for file in files:
                path = Path(folder) / file
                if file.endswith(PARTIAL) is partial:
                    try:
                        state = path.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found[path.relative_to(self.path).as_posix()] = (state.st_size, state.st_mtime)
        return found

    def folders(self) -> list[str]:
        return (
            sorted(entry.name for entry in self.path.iterdir() if entry.is_dir())
            if self.path.is_dir()
            else []
        )

    def put_if_absent(self, name: str, source: bytes | memoryview | Path) -> bool:
        path = self._path(name)
        if path.exists():
            return False
        temporary = self._write(path, source)
        try:
            # Unlike rename, link fails if the name is taken: of two writers exactly one wins.
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
                raise ValueError(
                    f"{self.path} has no hard links, which a store needs; choose another folder."
                ) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = self._write(path, data)
        os.replace(temporary, path)
        _flush_folder(path.parent)

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def delete_folder(self) -> None:
        shutil.rmtree(self.path, ignore_errors=False) if self.path.exists() else None

    def local(self, name: str) -> Path:
        return self._path(name)

    def free(self) -> int:
        folder = self.path
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _path(self, name: str) -> Path:
        return self.path / check_name(name)

    def _write(self, path: Path, source: bytes | memoryview | Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with temporary.open("xb") as file:
                if isinstance(source, Path):
                    with source.open("rb") as original:
                        shutil.copyfileobj(original, file, 1 << 20)
                else:
                    file.write(source)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


def cache_folder() -> Path:
    """This machine's folder for what can be had again: `LATENTMILL_CACHE`, else `~/.cache/latentmill`."""
    return Path(os.environ.get("LATENTMILL_CACHE") or Path.home() / ".cache" / "latentmill")


def digest_of(file: BufferedReader) -> str:
    """sha256 hex of what is left in a file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def whole(data: bytes, name: str, size: int) -> bytes:
    """The data itself; `EOFError` if it is not of that size."""
    if len(data) != size:
        raise EOFError(f"{name} ends {size - len(data)} bytes early.")
    return data


def _flush_folder(folder: Path) -> None:
    # The name is durable only once its folder is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
