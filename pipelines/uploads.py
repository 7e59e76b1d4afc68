"""What a recipe names by a path of this machine, and its way into the store.

A copy's name is made of its content, so that a second submit copies nothing, and of two nothing is torn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.storage import Storage, digest_of
from pipelines.dataset import MANIFEST
from pipelines.places import URL
from pipelines.recipe.schema import PATH_FIELDS
from pipelines.recipe.yaml12 import Place

UPLOADS = "uploads"
"""Folder of the store."""
MODEL_FOLDER = "local-dir:"
"""What may stand in front of the folder of an open_clip model."""
_LENGTH = 32
"""Hex digits of a copy's name."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A file or folder of this machine that a recipe names."""

    place: Place
    """Stage, then field, then what lies below it."""
    path: Path
    archive: bool
    """Whether a zip archive may stand for the folder."""

    @property
    def field(self) -> str:
        return ".".join(map(str, self.place))


def named(stages: Mapping[str, Any]) -> list[Named]:
    """All that a recipe's stages name by a path of this machine, defaults too."""
    return [one for name, stage in stages.items() for one in _within(stage, (name,))]


def _within(owner: Any, place: Place) -> Iterator[Named]:
    """`owner` is a stage, or a config within one."""
    inputs = owner.inputs() if hasattr(owner, "inputs") else {}
    for field in dataclasses.fields(owner):
        for at, value in _each(getattr(owner, field.name), (*place, field.name)):
            if dataclasses.is_dataclass(value):
                yield from _within(value, at)
            elif isinstance(value, Path) or (
                isinstance(value, str)
                and (field.name in PATH_FIELDS or (field.name in inputs and "/" in value))
            ):
                path = _local(str(value))
                if path is not None:
                    yield Named(place=at, path=path, archive=getattr(owner, "kind", None) == "folder")


def _each(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, (list, tuple)):
        for n, one in enumerate(value):
            yield from _each(one, (*place, n))
    else:
        yield place, value


def _local(text: str) -> Path | None:
    """The path, where `text` is one of this machine."""
    text = text.removeprefix(MODEL_FOLDER)
    url = URL.fullmatch(text)
    if url:
        return Path("/", url["rest"]) if url["scheme"] == "file" else None
    return None if re.match(r"[a-z]+:", text) else Path(text).expanduser()


def upload(store: Storage, one: Named) -> tuple[str, int]:
    """The URL under which it lies in the store, and the bytes that were copied for that.

    Raises:
        ValueError: it is not there.
    """
    if not one.path.exists():
        raise ValueError(f"{one.field}: {one.path} is not there.")
    single = one.path.is_file()
    files = [one.path] if single else sorted(path for path in one.path.rglob("*") if path.is_file())
    names = [path.relative_to(one.path.parent if single else one.path).as_posix() for path in files]
    told = (f"{_digest(path)} {name}\n" for path, name in zip(files, names, strict=True))
    digest = hashlib.sha256("".join(told).encode()).hexdigest()[:_LENGTH]
    folder, url = store.folder(UPLOADS).folder(digest), f"{store.url}/{UPLOADS}/{digest}"
    if one.archive and not single:
        archive = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', one.path.name) or 'images'}.zip"
        copied = 0 if folder.exists(archive) else _put_archive(folder, archive, files, names)
        return f"{url}/{archive}", copied
    # A manifest says that a dataset or snapshot is whole: it comes last.
    pairs = sorted(zip(names, files, strict=True), key=lambda pair: pair[0] == MANIFEST)
    copied = sum(path.stat().st_size for name, path in pairs if folder.put_if_absent(name, path))
    return f"{url}/{names[0]}" if single else url, copied


def _put_archive(folder: Storage, archive: str, files: Sequence[Path], names: Sequence[str]) -> int:
    """Puts the files into one archive, unpacked: images get no smaller, and each is read where it lies."""
    with tempfile.TemporaryDirectory(prefix="latentmill-upload-") as scratch:
        packed = Path(scratch, archive)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as target:
            for path, name in zip(files, names, strict=True):
                member = zipfile.ZipInfo(name)
                member.file_size = path.stat().st_size  # tells whether it needs zip64
                with path.open("rb") as source, target.open(member, "w") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        folder.put_if_absent(archive, packed)
        return packed.stat().st_size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return digest_of(file)
