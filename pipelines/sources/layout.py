"""From file names, metadata and sidecars to a listing: what folders and zip archives have in common."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pipelines.sources import metadata
from pipelines.sources.listing import SPLITS, Entry, Listing, encode
from pipelines.sources.magic import IMAGE_ENDINGS, kind_of
from pipelines.sources.seen import HEAD, Seen

Labels = Literal["folders", "none"]

_METADATA_BYTES = 1 << 30
_BATCH = 512


@dataclass(frozen=True)
class File:
    """A file of a source, before it is opened."""

    name: str
    where: str | int
    stamp: tuple[int, ...]
    """Changes when the file may have: size, mtime, inode, checksum."""


class Files(Protocol):
    """A folder or an archive."""

    path: Path

    def list(self) -> list[File]: ...

    def read(self, where: str | int, limit: int) -> bytes: ...

    def hash(self, where: str | int) -> tuple[str, bytes]:
        """sha256 hex of the bytes, and the first of them; `OSError` if they cannot be read."""
        ...


def survey(files: Files, labels: Labels) -> Listing:
    """Lists the inputs of a folder or an archive; only files that are new or changed are read."""
    found = sorted((f for f in files.list() if not _hidden(f.name)), key=lambda f: encode(f.name))
    stated: dict[str, dict[str, Any]] = {}
    pictures: list[File] = []
    by_name = {f.name: f for f in found}
    for file in found:
        if posixpath.basename(file.name) in metadata.NAMES:
            stated |= metadata.parse(file.name, files.read(file.where, _METADATA_BYTES))
    digests = _digests(files, [f for f in found if posixpath.basename(f.name) not in metadata.NAMES])
    for file in found:
        if file.name in digests:
            _, head = digests[file.name]
            ending = posixpath.splitext(file.name)[1].lower()
            if ending in IMAGE_ENDINGS or file.name in stated or kind_of(head) is not None:
                pictures.append(file)
    inputs = {f.name for f in pictures}
    sidecars = {
        f.name: by_name[side]
        for f in pictures
        if (side := _sidecar(f.name)) in by_name and side not in inputs
    }
    missing = sorted(set(stated) - inputs)
    named = [f.name for f in pictures]
    splits = _folder_splits(named)
    folders = _labels(named, splits) if labels == "folders" and not stated else {}
    entries = []
    for file in pictures:
        facts = dict(stated.get(file.name, {}))
        if "text" not in facts and file.name in sidecars:
            words = metadata.text(files.read(sidecars[file.name].where, 4 * metadata.TEXT_LENGTH))
            facts |= {"text": words} if words else {}
        if file.name in folders:
            facts["label"] = folders[file.name]
        split = SPLITS.get(str(facts.pop("split", "")).lower()) or splits.get(file.name)
        digest, _ = digests[file.name]
        reject = None if digest else "unreadable"
        entries.append(
            Entry(name=file.name, where=file.where, digest=digest, facts=facts, split=split, reject=reject)
        )
    entries += [
        Entry(name=name, where="", digest="", facts=stated[name], reject="missing") for name in missing
    ]
    used = inputs | {side.name for side in sidecars.values()}
    ignored = sum(name not in used for name in digests)
    return Listing(entries=sorted(entries, key=lambda e: encode(e.name)), ignored=ignored)


def hash_stream(stream: Any) -> tuple[str, bytes]:
    """sha256 hex of an open file, and its first bytes."""
    head = stream.read(HEAD)
    hasher = hashlib.sha256(head)
    while piece := stream.read(1 << 20):
        hasher.update(piece)
    return hasher.hexdigest(), head


def _digests(files: Files, found: Sequence[File]) -> dict[str, tuple[str, bytes]]:
    """Name -> (sha256 hex, head); ("", b"") for what cannot be read."""
    result: dict[str, tuple[str, bytes]] = {}
    with Seen(files.path) as seen:
        known = seen.files()
        todo: list[File] = []
        for file in found:
            stamp, digest, head = known.get(encode(file.name), ("", "", b""))
            if stamp == json.dumps(file.stamp) and digest:
                result[file.name] = (digest, head)
            else:
                todo.append(file)

        def look(file: File) -> tuple[str, bytes]:
            try:
                return files.hash(file.where)
            except OSError:
                return "", b""

        # Hashing and waiting for a disk both leave the interpreter free for other threads.
        with ThreadPoolExecutor(8) as threads:
            for start in range(0, len(todo), _BATCH):
                batch = todo[start : start + _BATCH]
                looks = list(threads.map(look, batch))
                result |= {f.name: found for f, found in zip(batch, looks, strict=True)}
                rows = zip(batch, looks, strict=True)
                seen.remember_files((encode(f.name), json.dumps(f.stamp), *found) for f, found in rows)
    return result


def _hidden(name: str) -> bool:
    return any(p.startswith(".") or p in ("__MACOSX", "Thumbs.db", "desktop.ini") for p in name.split("/"))


def _sidecar(name: str) -> str:
    return posixpath.splitext(name)[0] + ".txt"


def _folder_splits(names: Iterable[str]) -> dict[str, str]:
    """Name -> split, where folders are called as splits are, and at least two of them."""
    splits: dict[str, str] = {}
    for name in names:
        for part in name.split("/")[:-1][:2]:
            if part.lower() in SPLITS:
                splits[name] = SPLITS[part.lower()]
                break
    return splits if len(set(splits.values())) > 1 else {}


def _labels(names: Iterable[str], splits: dict[str, str]) -> dict[str, str]:
    """Name -> the name of the folder it lies in; nothing where one folder holds all."""
    labels = {}
    for name in names:
        parts = [p for p in name.split("/")[:-1] if not (name in splits and p.lower() in SPLITS)]
        if parts:
            labels[name] = parts[-1]
    return labels if len(set(labels.values())) > 1 else {}
