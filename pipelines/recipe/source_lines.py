"""How a recipe says where its images are: the lines of `source:`, with what was chosen and why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.places import PACKAGE, URL
from pipelines.recipe.survey import Survey, place
from pipelines.sources.columns import Columns
from pipelines.sources.idx import FASHION

_HOLDS = {
    "picture": "files' bytes, as HuggingFace has them",
    "bytes": "files' bytes",
    "path": "files' paths",
}
_SHOWN = 12
"""Columns that a comment names."""
_MEANT = {
    "text": "of captions; none is called text, caption or prompt",
    "label": "of classes; none is called label, class or category",
}


def source_lines(found: Survey, folder: Path) -> str:
    """The lines below a stage's name; `folder` is where the recipe will stand."""
    source: Any = found.source
    said: dict[str, Any] = {"kind": source.kind, "path": written(place(source), folder)}
    for name in ("config", "image", "text", "label", "splits"):
        value = getattr(source, name, None)
        said |= {name: value} if value is not None else {}
    if source.kind == "idx" and source.names != FASHION:
        said["names"] = list(source.names)
    if found.columns is None:
        inner = ", ".join(f"{name}: {_yaml(value)}" for name, value in said.items())
        return f"    source: {{{inner}}}\n"
    return "    source:\n" + "".join(
        f"      {line}\n" for line in _table(said, source, found.columns, folder)
    )


def _table(said: Mapping[str, Any], source: Any, columns: Columns, folder: Path) -> list[str]:
    lines = [f"{name}: {_yaml(said[name])}" for name in ("kind", "path", "config") if name in said]
    where = ""
    if columns.kind == "path":
        where = ", below the folder `images`" if source.images else ", below the table's own folder"
        if source.images:
            lines.append(f"images: {_yaml(written(str(source.images), folder))}")
    lines.append(
        f"image: {_yaml(columns.image)}   # the column of {_HOLDS.get(columns.kind, 'images')}{where}"
    )
    for role in ("text", "label"):
        name = getattr(columns, role)
        lines.append(f"{role}: {_yaml(name)}" if name else f"# {role}: COLUMN   # {_MEANT[role]}")
    if columns.split and source.kind == "table":
        lines.append(f"splits: {_yaml(columns.split)}")
    if columns.others:
        more = ", ..." if len(columns.others) > _SHOWN else ""
        others = ", ".join(_plain(name) for name in columns.others[:_SHOWN])
        lines.append(f"# kept with each image, as fields that captions can name: {others}{more}")
    return lines


def written(path: str, folder: Path) -> str:
    """A path as a recipe in `folder` says it: relative where it lies below; URLs stay."""
    if URL.fullmatch(path) or path.startswith(PACKAGE):
        return path
    whole = os.path.abspath(os.path.expanduser(path))
    below = os.path.relpath(whole, folder.absolute())
    return whole if below.startswith("..") else below


def _yaml(value: Any) -> str:
    """Names stay bare where YAML takes them for text, and JSON is YAML, too."""
    if isinstance(value, str) and value.isidentifier() and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


_WORDS = frozenset(["true", "false", "null", "yes", "no", "on", "off", "y", "n"])


def _plain(name: str) -> str:
    """Within one line of a comment."""
    return "".join(c if c.isprintable() else " " for c in name)[:60]
