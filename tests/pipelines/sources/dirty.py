"""A thousand files as they are found where nobody vouches for them, each with the verdict it deserves."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.pipelines.sources import dirty_broken, dirty_sound
from tests.pipelines.sources.dirty_sound import CANARY, COMMITTED, IGNORED, Made

__all__ = ["CANARY", "COMMITTED", "IGNORED", "File", "corpus", "sample", "write"]


@dataclass(frozen=True)
class File:
    """One file, or a link."""

    name: str
    """As `os.fsdecode` gives it: it may hold bytes that are no UTF-8."""
    verdict: str
    """committed, ignored, or the reason of its rejection."""
    data: bytes = b""
    link: str | None = None
    longer: int = 0
    """Zeros that follow, as a hole in the file."""


@functools.cache
def corpus(seed: int = 0) -> list[File]:
    """1,000 files in 21 folders, in an order of their own, all names different."""
    files = _files({kind: range(count) for kind, (count, _) in _KINDS.items()}, seed, twins=40, links=10)
    assert len(files) == 1000
    return files


@functools.cache
def sample(seed: int = 0) -> list[File]:
    """200 of all kinds but those that take seconds."""
    light = {kind: range(0, count, 5) for kind, (count, _) in _KINDS.items() if kind not in _HEAVY}
    files = _files(light, seed, twins=7, links=2)
    assert len(files) == 200
    return files


def _files(kinds: Mapping[str, range], seed: int, *, twins: int, links: int) -> list[File]:
    draw = random.Random(seed)
    made: list[tuple[str, Made]] = []
    for kind, numbers in kinds.items():
        made += [
            (f"{kind}-{n:03d}", _KINDS[kind][1](random.Random(f"{seed} {kind} {n}"), n)) for n in numbers
        ]
    draw.shuffle(made)
    files = []
    for n, (stem, (ending, data, verdict, *more)) in enumerate(made):
        name = _odd(stem, ending, n // 8) if n % 8 == 0 else f"{stem}{ending}"
        files.append(File(f"{n % 20:02d}/{name}", verdict, data, longer=sum(more)))
    sound = [file for file in files if file.verdict == COMMITTED and len(file.data) < 100_000]
    for n in range(twins):
        twin = draw.choice(sound)
        files.append(File(f"{n % 20:02d}/twin-{n:03d}{os.path.splitext(twin.name)[1]}", COMMITTED, twin.data))
    for n in range(links):
        target = draw.choice(sound)
        files.append(File(f"links/file-{n}.jpg", COMMITTED, target.data, link=f"../{target.name}"))
        files.append(File(f"links/folder-{n}.jpg", IGNORED, link=f"../{n:02d}"))
        files.append(File(f"links/dead-{n}.png", IGNORED, link="../nowhere.png"))
        files.append(File(f"links/round-{n}.png", IGNORED, link=f"round-{n}.png"))
    assert len({file.name for file in files}) == len(files)
    return files


def write(folder: Path, files: list[File]) -> None:
    for file in files:
        place = os.path.join(os.fspath(folder), file.name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if file.link is not None:
            os.symlink(file.link, place)
            continue
        with open(place, "wb") as out:
            out.write(file.data)
            out.truncate(len(file.data) + file.longer)


def _odd(stem: str, ending: str, n: int) -> str:
    """A name that breaks what splits by lines, spaces or dots, or takes names for text."""
    ways = ("\n", "\r\t", " ", "n\u0303", "\U0001f98a", os.fsdecode(b"\xff\xfe"), "\u202e", "a" * 190,
            "'\"`$(x)", ".tar.", "\x1b[31m", ";,|", "\\")  # fmt: skip
    way = ways[n % len(ways)]
    return f"-{way}{stem}{ending}" if n % 3 == 0 else f"{stem}{way}{ending}"


_HEAVY = ("near-the-cap", "too-large", "packed-bomb")
"""Kinds that take seconds to make or to judge."""
_KINDS: dict[str, tuple[int, Callable[[random.Random, int], Made]]] = {
    "jpeg": (85, dirty_sound.jpeg),
    "dressed-jpeg": (75, dirty_sound.dressed_jpeg),
    "huge-metadata": (12, dirty_sound.huge),
    "png": (60, dirty_sound.png),
    "deep": (28, dirty_sound.deep),
    "dressed-png": (40, dirty_sound.dressed_png),
    "packed-bomb": (20, dirty_sound.packed_bomb),
    "webp": (60, dirty_sound.webp),
    "cmyk": (30, dirty_sound.cmyk),
    "rotated": (72, dirty_sound.rotated),
    "misnamed": (46, dirty_sound.misnamed),
    "profile": (30, dirty_sound.profile),
    "two-pictures": (10, dirty_sound.two_pictures),
    "polyglot": (48, dirty_sound.polyglot),
    "stuffed": (16, dirty_sound.stuffed),
    "near-the-cap": (6, dirty_sound.near_the_cap),
    "cut": (60, dirty_broken.cut),
    "empty": (16, lambda draw, n: ((".jpg", ".png", ".webp", ".gif")[n % 4], b"", "empty")),
    "no-image": (52, dirty_broken.no_image),
    "other-file": (24, dirty_broken.other_file),
    "other-kind": (42, dirty_broken.other_kind),
    "moving": (20, dirty_broken.moving),
    "bomb": (30, dirty_broken.bomb),
    "too-large": (2, dirty_broken.too_large),
    "damaged": (24, dirty_broken.damaged),
    "half": (12, dirty_sound.half),
}
