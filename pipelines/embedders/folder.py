"""Local folders of weights: what is read from them, and the digest that stands for it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from pipelines.places import at_hand


def local_folder(path: str, needs: Sequence[str] = ()) -> Path:
    """The folder, with each file of `needs` and safetensors in it; `ValueError` otherwise.

    Weights in pickles (`.bin`, `.pt`) are not read: they can run code.
    """
    folder = at_hand(path.removeprefix("local-dir:"))
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; put the encoder's config and safetensors there.")
    for name in needs:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}.")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no .safetensors file; convert its weights (pickles are not read).")
    return folder


def folder_digest(path: str, patterns: Sequence[str]) -> str:
    """sha256 over names and bytes of the files that match; each read once a process.

    The manifest of one of our snapshots is left out: it also says when and how fast the weights were made.
    """
    folder = local_folder(path)
    files = sorted(
        {
            file
            for pattern in patterns
            for file in folder.glob(pattern)
            if file.is_file() and file.name != "manifest.json"
        },
        key=lambda file: file.name,
    )
    hasher = hashlib.sha256()
    for file in files:
        stat = file.stat()
        hasher.update(
            f"{file.name} {_file_digest(file, stat.st_size, stat.st_mtime_ns, stat.st_ino)}\n".encode()
        )
    return hasher.hexdigest()


@functools.cache
def _file_digest(path: Path, size: int, modified: int, inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
