"""A folder's files, on this machine or under a bucket, read where they lie."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cluster.storage import Storage
from pipelines.places import at_hand, remote


@dataclass(frozen=True)
class File:
    """A file before it is opened."""

    name: str
    """Below the tree's root, "/" between folders."""
    stamp: str
    """Changes when the file may have; "" for what is no regular file: never opened."""


class Tree(Protocol):
    def scan(self, folder: str) -> tuple[list[str], list[File]]:
        """Folders and files directly in `folder` ("" is the root), by name; links to folders are no folders.

        `ValueError` if it may not be read.
        """
        ...

    def open(self, name: str) -> BinaryIO: ...

    def stamp(self, name: str) -> str:
        """As the file has it now; "" where asking costs as much as reading, and where it is gone."""
        ...


def tree(path: Path) -> Tree:
    """`ValueError` if there is no such folder."""
    storage = remote(path)
    if storage is not None:
        return RemoteTree(storage)
    folder = at_hand(path)
    if not folder.is_dir():
        raise ValueError(f"{path} is not a folder.")
    return LocalTree(folder.resolve())


class LocalTree:
    def __init__(self, root: Path) -> None:
        self.root = root

    def scan(self, folder: str) -> tuple[list[str], list[File]]:
        place = os.path.join(self.root, folder)
        try:
            with os.scandir(place) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except PermissionError:
            raise ValueError(f"The folder {place} may not be read.") from None
        folders, files = [], []
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            else:
                files.append(File(name, _stamp(entry.stat)))
        return folders, files

    def open(self, name: str) -> BinaryIO:
        return open(os.path.join(self.root, name), "rb", buffering=0)  # type: ignore[return-value]

    def stamp(self, name: str) -> str:
        return _stamp(lambda: os.stat(os.path.join(self.root, name)))


class RemoteTree:
    def __init__(self, storage: Storage) -> None:
        self._storage: Any = storage
        self._root = storage.url.partition("://")[2]

    def scan(self, folder: str) -> tuple[list[str], list[File]]:
        place = f"{self._root}/{folder}".rstrip("/")
        try:
            listed = self._storage.filesystem.ls(place, detail=True, refresh=True)
        except FileNotFoundError:
            raise ValueError(f"There is nothing at {self._storage.url}/{folder}.") from None
        except PermissionError:
            raise ValueError(
                f"{self._storage.url}/{folder} may not be read: check the credentials."
            ) from None
        folders, files = [], []
        for entry in sorted(listed, key=lambda entry: entry["name"]):
            name = str(entry["name"]).removeprefix(self._root).strip("/")
            if entry["type"] == "directory":
                folders.append(name)
            elif name != folder:  # a folder's own mark
                said = (
                    entry.get(k) for k in ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified")
                )
                files.append(File(name, f"{entry['size']} {next((s for s in said if s), '')}"))
        return folders, files

    def open(self, name: str) -> BinaryIO:
        return self._storage.filesystem.open(f"{self._root}/{name}", "rb", cache_type="none")

    def stamp(self, name: str) -> str:
        return ""


def _stamp(asked: Callable[[], os.stat_result]) -> str:
    try:
        state = asked()
    except OSError:
        return ""  # a link to nothing
    if not stat.S_ISREG(state.st_mode):
        return ""
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"
