"""Which kind of source lies at a place, told by names and a few bytes."""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.places import URL, at_hand, remote
from pipelines.recipe.glimpse import HEAD, TARS, TEXT_TABLES, Glimpse, glimpse, is_image
from pipelines.sources import (
    FolderSource,
    GlobSource,
    HuggingFaceSource,
    IdxSource,
    Img2datasetSource,
    Source,
    TableSource,
    WebDatasetSource,
    ZipSource,
    metadata,
)
from pipelines.sources.card import _front, card
from pipelines.sources.idx import IdxFiles
from pipelines.sources.magic import kind_of

KINDS: Mapping[str, Any] = {
    "folder": FolderSource,
    "zip": ZipSource,
    "glob": GlobSource,
    "webdataset": WebDatasetSource,
    "img2dataset": Img2datasetSource,
    "table": TableSource,
    "huggingface": HuggingFaceSource,
    "idx": IdxSource,
}
_WILD = re.compile(r"[*?\[{]")
_IDX = re.compile(r"(?:train|t10k)-(?:images|labels)-idx[13]-ubyte(?:\.gz)?")
_STATS = re.compile(r"\d+_stats\.json")
_SHARD = re.compile(r"(?:^|/)[\w.-]+-\d{5}-of-\d{5}(?:-\w+)?\.parquet$")
"""As `push_to_hub` names files: data/train-00000-of-00005.parquet."""
_FASHION = bytes([9, 0, 0, 3, 0, 2, 7, 2, 5, 5])
"""The first labels of Fashion-MNIST; MNIST's are 5, 0, 4, 1, ..."""
_README_BYTES = 1 << 20
_SNIFFED = 32
"""Files without a known ending whose first bytes are looked at."""


@dataclass(frozen=True, kw_only=True)
class Recognised:
    source: Source
    notes: tuple[str, ...] = ()
    """What the user should know of the choice, a line each."""


def recognise(place: str, *, kind: str | None = None, fields: Mapping[str, Any] | None = None) -> Recognised:
    """The source at a path, a pattern, or an s3, gs or az URL.

    Args:
        kind: what it is, where that is known.
        fields: of the source, such as a table's column of images.

    Raises:
        ValueError: nothing is there, nothing fits, or several kinds do; with what was seen.
    """
    path = Path(place).expanduser()
    found = Recognised(source=_of_kind(kind, path)) if kind else _recognised(path)
    known = {field.name for field in dataclasses.fields(found.source)}
    given = {name: value for name, value in (fields or {}).items() if value is not None}
    if wrong := [name for name in given if name not in known]:
        raise ValueError(f"{place} is of the kind {found.source.kind}, which has no {wrong[0]!r} to choose.")
    return dataclasses.replace(found, source=dataclasses.replace(found.source, **given))


def _of_kind(kind: str, path: Path) -> Source:
    if kind == "idx":
        return _idx(path)
    return KINDS[kind](path=path)


def _recognised(path: Path) -> Recognised:
    text = str(path)
    here = remote(path) is None
    if here and at_hand(path).is_file():
        return _file(path)
    if here and at_hand(path).is_dir():
        return _folder(glimpse(path))
    name = posixpath.basename(text)
    url = URL.fullmatch(text)
    if _WILD.search(url["rest"] if url else text):
        return Recognised(source=_by_ending(path, name) or GlobSource(path=path))
    if here:
        raise ValueError(f"there is no {path}.")
    if name.lower().endswith(".zip"):
        return Recognised(source=ZipSource(path=path))
    source = _by_ending(path, name)
    return Recognised(source=source) if source else _folder(glimpse(path))


def _by_ending(path: Path, name: str) -> Source | None:
    lower = name.lower()
    if lower.endswith(TARS):
        return WebDatasetSource(path=path)
    return TableSource(path=path) if lower.endswith((".parquet", *TEXT_TABLES)) else None


def _file(path: Path) -> Recognised:
    """A file, by its first bytes where these are of a known kind, else by its ending."""
    place = at_hand(path)
    with place.open("rb") as file:
        head = file.read(HEAD)
    name = place.name.lower()
    if _IDX.fullmatch(place.name):
        return Recognised(source=_idx(path.parent))
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Recognised(source=ZipSource(path=path))
    if head[257:262] == b"ustar":
        return Recognised(source=WebDatasetSource(path=path))
    if head.startswith(b"PAR1") and not name.endswith(".parquet"):
        raise ValueError(f"{path} is Parquet by its first bytes: name it {place.name}.parquet.")
    if source := _by_ending(path, name):
        return Recognised(source=source)
    if kind_of(head):
        raise ValueError(f"{path} is one picture: name the folder it lies in.")
    hint = {
        ".json": " A table of JSON has one object a line, and is called .jsonl.",
        ".yaml": " A recipe is taken by `latentmill run`.",
        ".txt": " A list of addresses is for img2dataset, whose output is read.",
        ".arrow": " `datasets`' to_parquet writes what is read.",
    }.get(place.suffix.lower(), "")
    raise ValueError(f"{path} is no archive of images and no table.{hint} {_THERE_ARE}")


def _folder(seen: Glimpse) -> Recognised:
    path = seen.path
    if any(_IDX.fullmatch(posixpath.basename(name)) for name in seen.names):
        return Recognised(source=_idx_below(seen))
    tars, parquet = seen.ending(*TARS), seen.ending(".parquet")
    lists, images = seen.ending(*TEXT_TABLES), seen.images
    if _is_img2dataset(seen, tars, parquet):
        return Recognised(source=Img2datasetSource(path=path))
    if parquet and (said := _dataset(seen, parquet, alone=not tars and not images)):
        return said
    if seen.ending(".arrow") and any(
        name.rpartition("/")[2] in ("state.json", "dataset_dict.json") for name in seen.names
    ):
        raise ValueError(
            f"{path} was written by `save_to_disk`, whose Arrow files are not read: "
            "`datasets.load_from_disk(...).to_parquet(...)` writes what is."
        )
    several = [
        (kind, f"{len(names):,} {what}")
        for kind, what, names in (
            ("webdataset", "tars", tars),
            ("table", "Parquet tables", parquet),
            ("folder", "images", images),
        )
        if names
    ]
    if len(several) > 1:
        raise ValueError(
            f"{path} holds {' and '.join(what for _, what in several)}: name what is meant, or say "
            f"--kind {' or --kind '.join(kind for kind, _ in several)}."
        )
    if tars:
        return Recognised(source=WebDatasetSource(path=path))
    if parquet or (lists and not images):
        return Recognised(source=TableSource(path=path))
    if images or any(kind_of(seen.head(name)) for name in _unknown(seen)):
        return Recognised(source=FolderSource(path=path), notes=_beside(path, lists))
    if zips := seen.ending(".zip"):
        raise ValueError(
            f"{path} holds {len(zips):,} zip archives and no images: name one, as {path / zips[0]}."
        )
    if records := seen.ending(".tfrecord", ".tfrecords"):
        raise ValueError(f"{path} holds {len(records):,} TFRecords, which are not read. {_THERE_ARE}")
    raise ValueError(
        f"{path} has no image in it, no tar and no table; there is {seen.counted()}. {_THERE_ARE}"
    )


_THERE_ARE = f"The kinds are {', '.join(KINDS)}; --kind says which it is."


def _is_img2dataset(seen: Glimpse, tars: list[str], parquet: list[str]) -> bool:
    stems = {name.rpartition(".")[0] for name in tars} & {name.rpartition(".")[0] for name in parquet}
    return any(_STATS.fullmatch(name) for name in seen.names) or any(stem.isdecimal() for stem in stems)


def _dataset(seen: Glimpse, parquet: list[str], *, alone: bool) -> Recognised | None:
    """A HuggingFace dataset, by its README, or, where there is nothing else, by how its files are called."""
    readme = seen.head("README.md", _README_BYTES) if "README.md" in seen.names else b""
    said = _front(readme)
    called = alone and any(_SHARD.search(name) for name in parquet)
    if not called and not said.keys() & {"dataset_info", "configs"}:
        return None
    try:
        card(readme, None)
    except ValueError:
        told = [one for one in said.get("configs") or said.get("dataset_info") or () if isinstance(one, dict)]
        names = [str(one.get("config_name", "default")) for one in told]
        others = ", ".join(names[1:6]) + (", ..." if len(names) > 6 else "")
        return Recognised(
            source=HuggingFaceSource(path=seen.path, config=names[0]),
            notes=(f"of the configurations {names[0]} is taken; there are {others}, too",),
        )
    return Recognised(source=HuggingFaceSource(path=seen.path))


def _idx_below(seen: Glimpse) -> IdxSource:
    """torchvision puts the files two folders down."""
    folders = {posixpath.dirname(name) for name in seen.names if _IDX.fullmatch(posixpath.basename(name))}
    if len(folders) > 1:
        raise ValueError(
            f"{seen.path} holds IDX files in {', '.join(sorted(map(repr, folders))[:6])}: name one of them."
        )
    return _idx(seen.path / folders.pop())


def _idx(path: Path) -> IdxSource:
    labels = IdxFiles(at_hand(path)).labels("train")
    if labels.startswith(_FASHION):
        return IdxSource(path=path)
    return IdxSource(path=path, names=tuple(str(n) for n in range(max(labels, default=0) + 1)))


def _unknown(seen: Glimpse) -> list[str]:
    told = (*TARS, *TEXT_TABLES, ".parquet", ".zip", ".txt", ".json", ".md", ".py")
    return [name for name in seen.names if not is_image(name) and not name.lower().endswith(told)][:_SNIFFED]


def _beside(path: Path, lists: list[str]) -> tuple[str, ...]:
    """Tables beside images that no image is told by."""
    others = [name for name in lists if posixpath.basename(name) not in metadata.NAMES]
    if not others:
        return ()
    more = f" (and {len(others) - 1:,} more)" if others[1:] else ""
    again = f"latentmill init {path / others[0]}"
    return (f"{others[0]}{more} is not read; `{again}` takes its rows, if they name the images",)
