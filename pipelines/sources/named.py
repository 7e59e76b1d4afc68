"""The files that a path names: one, all below a folder, or those of a pattern, braces included."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.places import URL, at_hand, remote
from pipelines.sources.glob import name_pattern as compiled
from pipelines.sources.layout import hidden
from pipelines.sources.listing import SPLITS, encode
from pipelines.sources.tree import File, Tree, tree

EXPANSIONS = 1_000_000
"""Names that a pattern's braces may stand for."""

_MAGIC = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def named(path: Path, endings: Sequence[str]) -> tuple[Tree, list[File]]:
    """The files of these endings that the path names, by name below the folder that the tree is of.

    Raises:
        ValueError: there are none, one that braces name is not there, or the pattern stands for too many.
    """
    files = home(path, endings)
    if remote(path) is None and at_hand(path).is_file():
        return files, [file for file in files.scan("")[1] if file.name == at_hand(path).name]
    _, pattern = _divided(path, endings)
    if not pattern:
        return files, _below(files, path, endings)
    names = expanded(pattern)
    plain = {name for name in names if not _MAGIC.search(name)}
    wild = [compiled(name) for name in names if name not in plain]
    # One folder is listed where no pattern goes deeper.
    found = _walk(files, deep="/" in pattern)
    chosen = [f for f in found if f.name in plain or any(one.fullmatch(f.name) for one in wild)]
    missing = sorted(plain - {file.name for file in chosen})
    if missing:
        raise ValueError(f"{path}: {missing[0]} is not there, and {len(missing) - 1:,} more.")
    if not chosen:
        raise ValueError(f"{path} names no file.")
    return files, sorted(chosen, key=lambda file: encode(file.name))


def home(path: Path, endings: Sequence[str]) -> Tree:
    """The folder that `named` gives names below; nothing is listed."""
    return tree(folder(path, endings))


def folder(path: Path, endings: Sequence[str]) -> Path:
    """Where that lies."""
    return Path(_divided(path, endings)[0])


def _divided(path: Path, endings: Sequence[str]) -> tuple[str, str]:
    """The folder that is listed, and the pattern below it; "" for all that is there."""
    text = str(path)
    if remote(path) is None and at_hand(path).exists():
        place = at_hand(path)
        return (str(place.parent), place.name) if place.is_file() else (str(place), "")
    url = URL.fullmatch(text)
    if url and url["scheme"] == "file":
        text, url = f"/{url['rest']}", None
    front = f"{url['scheme']}://" if url else ""
    parts = (url["rest"].rstrip("/") if url else str(at_hand(Path(text)))).split("/")
    first = next((n for n, part in enumerate(parts) if _MAGIC.search(part)), None)
    if first is None:
        if not url:
            raise ValueError(f"{path} is not there.")
        if not parts[-1].lower().endswith(tuple(endings)):
            return front + "/".join(parts), ""
        first = len(parts) - 1
    return front + ("/".join(parts[:first]) or ("/" if text.startswith("/") else ".")), "/".join(
        parts[first:]
    )


def expanded(pattern: str) -> list[str]:
    """What braces stand for: {a,b} and {000..127}, as shells and webdataset write them; not nested."""
    pieces = _BRACES.split(pattern)
    if len(pattern) > 4096 or any("{" in piece or "}" in piece for piece in pieces[::2]):
        raise ValueError(f"The pattern {pattern[:80]!r} has nested or open braces, or is too long.")
    choices: list[Sequence[str]] = []
    number = 1
    for n, piece in enumerate(pieces):
        choices.append(_choices(piece) if n % 2 else [piece])
        number *= len(choices[-1])
        if number > EXPANSIONS:
            raise ValueError(f"The pattern {pattern!r} stands for more than {EXPANSIONS:,} names.")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def splits(names: Sequence[str]) -> dict[str, str]:
    """Name -> split, where file names begin as splits are called (train-00000.tar), and at least two do."""
    found = {}
    for name in names:
        first = re.split(r"[-_.]", name.rpartition("/")[2])[0].lower()
        if first in SPLITS:
            found[name] = SPLITS[first]
    return found if len(set(found.values())) > 1 else {}


def _choices(text: str) -> Sequence[str]:
    limits = _RANGE.fullmatch(text)
    if not limits:
        return text.split(",")
    low, high, width = int(limits[1]), int(limits[2]), len(limits[1]) if limits[1].startswith("0") else 0
    if high < low or high - low >= EXPANSIONS:
        raise ValueError(
            f"{{{text}}} stands for {max(0, high - low + 1):,} names; 1 to {EXPANSIONS:,} are read."
        )
    return [f"{n:0{width}d}" for n in range(low, high + 1)]


def _below(files: Tree, path: Path, endings: Sequence[str]) -> list[File]:
    found = [file for file in _walk(files, deep=True) if file.name.lower().endswith(tuple(endings))]
    if not found:
        raise ValueError(f"{path} has no file that ends in {', '.join(endings)}.")
    return sorted(found, key=lambda file: encode(file.name))


def _walk(files: Tree, *, deep: bool) -> list[File]:
    waiting, found = [""], []
    while waiting:
        folders, here = files.scan(waiting.pop())
        waiting += [name for name in folders if deep and not hidden(name)]
        found += [file for file in here if not hidden(file.name)]
    return found
