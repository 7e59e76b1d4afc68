"""The first names below a folder: enough to tell what it is, of a folder of any size."""

from __future__ import annotations

import itertools
import os
import posixpath
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipelines.sources import inflated
from pipelines.sources.layout import hidden, up_to
from pipelines.sources.magic import IMAGE_ENDINGS
from pipelines.sources.tree import LocalTree, Tree, tree

NAMES = 20_000
"""Files that are listed, of one folder and of all; in a bucket a folder is listed as a whole."""
SECONDS = 5.0
HEAD = 512
TARS = (".tar", *inflated.ENDINGS)
TEXT_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """Names of files below a folder, those near its top first."""

    path: Path
    files: Tree
    names: tuple[str, ...]

    def ending(self, *endings: str) -> list[str]:
        return [name for name in self.names if name.lower().endswith(endings)]

    @property
    def images(self) -> list[str]:
        return [name for name in self.names if is_image(name)]

    def counted(self) -> str:
        """What kinds of files there are, as `3 .mp4 and 1 .txt`."""
        kinds = Counter(posixpath.splitext(name)[1].lower() or "without an ending" for name in self.names)
        most = [f"{count:,} {kind}" for kind, count in kinds.most_common(4)]
        if not most:
            return "nothing"
        return most[0] if len(most) == 1 else f"{', '.join(most[:-1])} and {most[-1]}"

    def open(self, name: str) -> BinaryIO:
        return self.files.open(name)

    def head(self, name: str, size: int = HEAD) -> bytes:
        """The first bytes of a file; none if it cannot be read."""
        try:
            with self.files.open(name) as file:
                return up_to(file, size)
        except OSError:
            return b""


def is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in IMAGE_ENDINGS


def glimpse(path: Path) -> Glimpse:
    """`ValueError` if there is no such folder, or it may not be read."""
    files = tree(path)
    waiting, names = deque([""]), list[str]()
    until = time.monotonic() + SECONDS
    while waiting and len(names) < NAMES:
        folders, found = _listed(files, waiting.popleft())
        waiting += [name for name in folders if not hidden(name)]
        names += [name for name in found if not hidden(name)]
        if time.monotonic() > until:
            break
    return Glimpse(path=path, files=files, names=tuple(names[:NAMES]))


def _listed(files: Tree, folder: str) -> tuple[list[str], list[str]]:
    """Folders and files in a folder: of one on this machine no more than are wanted."""
    if not isinstance(files, LocalTree):
        folders, found = files.scan(folder)
        return folders, [file.name for file in found]
    try:
        with os.scandir(os.path.join(files.root, folder)) as listed:
            entries = sorted(itertools.islice(listed, NAMES), key=lambda entry: entry.name)
    except PermissionError:
        raise ValueError(f"The folder {os.path.join(files.root, folder)} may not be read.") from None
    named = [(posixpath.join(folder, entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    return [name for name, is_folder in named if is_folder], [n for n, is_folder in named if not is_folder]
