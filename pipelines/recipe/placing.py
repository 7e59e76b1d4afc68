"""Where the files lie that a table names: beside it, or in a folder nearby."""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.places import at_hand, remote
from pipelines.recipe.drawing import Drawn, names_files
from pipelines.recipe.sample import Held
from pipelines.sources import Source, TableSource
from pipelines.sources.layout import hidden
from pipelines.sources.named import folder
from pipelines.sources.tables import ENDINGS
from pipelines.sources.within import Refused, Root

_TRIED = 20
"""Rows whose files are looked for."""
_FOLDERS = 200
"""Folders that they are looked for in."""


def placed(source: Source, drawn: Drawn) -> Source:
    """The table with the folder of its files, where the first rows' lie not below its own but nearby."""
    part = next((part for part in drawn.parts if names_files(part)), None)
    if not isinstance(source, TableSource) or source.images or part is None or remote(source.path):
        return source
    first = list(itertools.islice(source.read(part, 1, {}, Held()), _TRIED))
    said = [found.facts.get("image") for found in first if found.reject in ("missing", "outside")]
    if not said or len(said) < len(first):
        return source
    home = at_hand(Path(folder(source.path, ENDINGS)))
    if posixpath.dirname(part.data["file"]):
        home /= posixpath.dirname(part.data["file"])
    counted = [(_held(Root(place), said), place) for place in _nearby(home)]
    most, place = max(counted, key=lambda pair: pair[0], default=(0, home))
    return replace(source, images=place) if 2 * most > len(said) else source


def _held(root: Root, said: Sequence[Any]) -> int:
    """How many of the files are below it."""
    found = 0
    for path in said:
        with contextlib.suppress(Refused):
            root.find(path)
            found += 1
    return found


def _nearby(home: Path) -> Iterator[Path]:
    """Two levels of folders below, and the one above."""
    for seen, (place, folders, _) in enumerate(os.walk(home)):
        folders[:] = [] if Path(place).parent.parent == home else sorted(f for f in folders if not hidden(f))
        if Path(place) != home:
            yield Path(place)
        if seen == _FOLDERS:
            break
    yield home.parent
