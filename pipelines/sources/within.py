"""Which file a table means, and whether it may be read: below one root, whatever the table says."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines.places import at_hand, remote
from pipelines.sources.tree import LocalTree, Tree, tree

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PATTERN = re.compile(r"[*?\[{]")
_LONGEST = 4096


class Refused(Exception):
    """A file that is not read; its argument is a reason code."""


class Root:
    """A folder, on this machine or in a bucket, that files are read from and nowhere else."""

    def __init__(self, path: Path, *, folder: str = "") -> None:
        """`ValueError` if there is no such folder. What a table says starts in `folder` of it."""
        self.files: Tree = tree(path)
        storage = remote(path)
        self._url = storage.url if storage is not None else None
        self._folder = folder
        self._given = os.path.abspath(at_hand(path)) if storage is None else ""

    def find(self, said: Any) -> tuple[str, str]:
        """Name below the root, and a stamp ("" in a bucket), of what a table says.

        Raises:
            Refused: it says nothing, leads elsewhere, or there is no such file.
        """
        if not isinstance(said, str) or not said.strip():
            raise Refused("missing")
        name = self._name(said)
        if not isinstance(self.files, LocalTree):
            return name, ""
        root = os.path.realpath(self.files.root)
        real = os.path.realpath(os.path.join(root, name))
        if not real.startswith(root.rstrip("/") + "/"):
            raise Refused("outside")
        try:
            state = os.stat(real)
        except OSError:
            # A pattern is nobody's file; it is not looked what it might stand for.
            raise Refused("outside" if _PATTERN.search(said) else "missing") from None
        if not stat.S_ISREG(state.st_mode):
            raise Refused("unreadable")
        return name, f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"

    def _name(self, said: str) -> str:
        """The path below the root, by its spelling alone."""
        if len(said) > _LONGEST or _CONTROL.search(said):
            raise Refused("outside")
        path = f"{self._folder}/{said}" if self._folder else said
        if _SCHEME.match(said):
            path = self._of_url(said)
        elif said.startswith("/"):
            path = self._of_absolute(said)
        name = posixpath.normpath(path)
        if name in ("", ".", "..") or name.startswith(("../", "/")):
            raise Refused("outside")
        return name

    def _of_url(self, said: str) -> str:
        scheme = said.partition(":")[0].lower()
        if scheme in ("http", "https"):
            raise Refused("not_downloaded")
        if self._url is not None and said.startswith(f"{self._url}/"):
            return said.removeprefix(f"{self._url}/")
        try:
            parts = urlsplit(said)
        except ValueError:
            raise Refused("outside") from None
        if scheme != "file" or self._url is not None or parts.netloc not in ("", "localhost"):
            raise Refused("outside")
        return self._of_absolute(unquote(parts.path))

    def _of_absolute(self, said: str) -> str:
        path = posixpath.normpath(said)
        if self._url is None and path.startswith("/") and not _CONTROL.search(path):
            for root in (self._given, os.path.realpath(self._given)):
                if path.startswith(root.rstrip("/") + "/"):
                    return path[len(root.rstrip("/")) + 1 :]
        raise Refused("outside")
