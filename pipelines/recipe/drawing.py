"""Which parts of a source are read where not all can be: drawn at random, each with what it stands for."""

from __future__ import annotations

import math
import posixpath
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.recipe.glimpse import is_image
from pipelines.sources import metadata
from pipelines.sources.lines import Csv, JsonLines, buffered
from pipelines.sources.named import folder
from pipelines.sources.source import Part, Source
from pipelines.sources.tables import ENDINGS
from pipelines.sources.tree import Tree, tree

OPENED = 64
"""Folders, tables or pieces of tables that are looked into, of those at one depth."""
PIECES = 8
"""Of tables whose rows name files."""
PARTS = 256
"""Tars, row groups or pieces of tables that are read, at most."""
CHUNK = 256
"""Images of a folder or a zip archive that are read in one go."""
ROWS = 64
"""Rows that name files that are: few, as neighbours are often of a kind."""
DRAWN = 20_000
"""Names of images that are drawn, at most."""
METADATA = 256 << 20
"""Bytes of a metadata.csv or .jsonl that is read; larger ones are left to the run."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The parts that are read, in that order, and what they stand for."""

    parts: tuple[Part, ...]
    weights: Mapping[str, float]
    """Part's name -> what there is in it, in a unit that is the same for all: images, rows or bytes."""
    times: Mapping[str, float]
    """Part's name -> parts that it stands for."""
    total: float
    """Weight of all that was listed, and of what that stands for."""
    all: bool
    """Whether this is the source and nothing less."""
    unread: tuple[str, ...] = ()
    """Metadata that are too large."""
    names: frozenset[str] = frozenset()
    """Of the files that are read, where they were drawn one by one."""


def draw(source: Source, *, until: float) -> Drawn:
    """Lists a source until a time (`time.monotonic`), and one part at least, and draws from what it found."""
    leaves, whole = _leaves(source, until)
    if leaves and all("files" in leaf.part.data for leaf in leaves):
        return _by_image(leaves, whole)
    if any(names_files(leaf.part) for leaf in leaves):
        leaves, cut = _cut(source, [leaf for leaf in leaves if names_files(leaf.part)])
        whole &= cut
    random.Random(1).shuffle(leaves)
    taken = leaves[:PARTS]
    parts = tuple(replace(leaf.part, name=f"{n:06d}") for n, leaf in enumerate(taken))
    return Drawn(
        parts=parts,
        weights={part.name: _extent(part) for part in parts},
        times={part.name: leaf.times for part, leaf in zip(parts, taken, strict=True)},
        total=sum(_extent(leaf.part) * leaf.times for leaf in leaves),
        all=whole and len(taken) == len(leaves),
    )


@dataclass(frozen=True)
class _Leaf:
    part: Part
    times: float
    """Parts that it stands for."""


def _leaves(source: Source, until: float) -> tuple[list[_Leaf], bool]:
    """Parts that can be read, level by level; False if some of a level stand for the others."""
    order, found, whole = random.Random(0), list[_Leaf](), True
    level = [_Leaf(part, 1.0) for part in source.roots()]
    while level:
        # A piece of a table can be read as it is: only what it is called waits for the files it names.
        ready = [leaf.part.leaf or "piece" in leaf.part.data for leaf in level]
        found += [leaf for leaf, is_ready in zip(level, ready, strict=True) if is_ready]
        waiting = [leaf for leaf, is_ready in zip(level, ready, strict=True) if not is_ready]
        order.shuffle(waiting)
        level = []
        opened = 0
        for leaf in waiting[:OPENED]:
            level += [_Leaf(part, leaf.times) for part in source.split(leaf.part)]
            opened += 1
            if time.monotonic() > until:
                break
        if opened < len(waiting):
            whole = False
            level = [_Leaf(leaf.part, leaf.times * len(waiting) / opened) for leaf in level]
    return found, whole


def _by_image(leaves: Sequence[_Leaf], whole: bool) -> Drawn:
    """Files drawn one by one, each image with what is called like it, and all metadata."""
    order = random.Random(1)
    stems: dict[str, list[list[Any]]] = {}
    drawn: list[tuple[float, str]] = []
    said, unread = list[Part](), list[str]()
    named = any(is_image(name) for leaf in leaves for name, *_ in leaf.part.data["files"])
    total = 0.0
    for leaf in leaves:
        for file in leaf.part.data["files"]:
            name, _, stamp = file
            if posixpath.basename(name) in metadata.NAMES and stamp:
                size = stamp.partition(" ")[0]
                large = size.isdecimal() and int(size) > METADATA
                unread += [name] * large
                said += [Part(name="", stamp="", data={"files": [file]})] * (not large)
                continue
            stem = posixpath.splitext(name)[0]
            if stem not in stems:
                # Efraimidis and Spirakis, 2006: the largest of these are a draw by weight.
                drawn.append((math.log(1 - order.random()) / leaf.times, stem))
            stems.setdefault(stem, []).append(file)
            total += leaf.times * (is_image(name) or not named)
    drawn.sort(reverse=True)
    taken = [stem for _, stem in drawn[:DRAWN]]
    chunks = [taken[start : start + CHUNK] for start in range(0, len(taken), CHUNK)]
    drawn_parts = [Part(name="", stamp="", data={"files": [f for s in c for f in stems[s]]}) for c in chunks]
    parts = tuple(replace(part, name=f"{n:06d}") for n, part in enumerate([*said, *drawn_parts]))
    weights = {
        part.name: 0.0
        if n < len(said)
        else float(sum(is_image(f[0]) or not named for f in part.data["files"]))
        for n, part in enumerate(parts)
    }
    return Drawn(
        parts=parts,
        weights=weights,
        times=dict.fromkeys(weights, 1.0),
        total=total,
        all=whole and len(taken) == len(drawn) and not unread,
        unread=tuple(unread),
        names=frozenset(file[0] for stem in taken for file in stems[stem]),
    )


def names_files(part: Part) -> bool:
    """Whether it is a piece of a table whose rows name files."""
    return "piece" in part.data and part.data["columns"]["kind"] == "path"


def _cut(source: Source, leaves: list[_Leaf]) -> tuple[list[_Leaf], bool]:
    """Rows that name files, in pieces of `ROWS` rows; False if some pieces stand for the others."""
    chosen = random.Random(0).sample(leaves, min(len(leaves), PIECES))
    files, found = tree(folder(source.path, ENDINGS)), list[_Leaf]()
    for leaf in chosen:
        said = leaf.part.data
        *before, start, end = said["piece"]
        starts = list(range(start, end, ROWS)) if before else _starts(files, said["file"], start, end)
        for low, high in zip(starts, [*starts[1:], end], strict=True):
            part = replace(leaf.part, data={**said, "piece": [*before, low, high]})
            found.append(_Leaf(part, leaf.times * len(leaves) / len(chosen)))
    return found, len(chosen) == len(leaves)


def _starts(files: Tree, name: str, start: int, end: int) -> list[int]:
    """Where every `ROWS`th row of a range of lines begins."""
    with files.open(name) as raw:
        kind = Csv if name.lower().endswith((".csv", ".tsv")) else JsonLines
        return [at for at, _ in kind(buffered(raw), name).rows(start, end)][::ROWS]


def _extent(part: Part) -> float:
    """Rows or bytes, by what parts of that kind say."""
    piece = part.data.get("piece")
    if piece:
        return float(piece[-1] - piece[-2])
    if "broken" in part.data:
        return 0.0
    size = part.stamp.partition(" ")[0]
    return float(size) if "file" in part.data and size.isdecimal() else 1.0
