"""Which column of a table is the image, which the text, the label, the key and the split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["bytes", "picture", "path", "number", "other"]
"""Of a column: bytes of files, {bytes, path} as HuggingFace has it, text, numbers, anything else."""

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "image": (
        *("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "image_data", "bytes", "content"),
        *("image_path", "image_file", "file_name", "filename", "file", "filepath", "file_path", "path"),
    ),
    "text": ("text", "caption", "prompt", "txt"),
    "label": ("label", "class", "category"),
    "key": ("key", "__key__"),
    "split": ("split",),
}
"""Names that a column is taken for where none is given; the first that is there."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that mean something; all others are facts by their own names."""

    image: str
    kind: Kind
    text: str | None = None
    label: str | None = None
    key: str | None = None
    split: str | None = None
    others: tuple[str, ...] = ()


def choose(table: str, columns: Mapping[str, Kind], wanted: Mapping[str, str | None]) -> Columns:
    """The columns of a table, by the names that are wanted or else by `DEFAULTS`.

    Raises:
        ValueError: one that is wanted is not there, or there is no image; all columns are listed.
    """
    there = ", ".join(list(columns)[:40]) or "none"
    chosen: dict[str, str] = {}
    for role in DEFAULTS:
        name = wanted.get(role)
        if name is not None and name not in columns:
            raise ValueError(f"{table} has no column {name!r} ({role}); its columns are: {there}.")
        found = name if name is not None else _default(role, columns, taken=chosen.values())
        if found is not None:
            chosen[role] = found
    if "image" not in chosen:
        hint = " Its url is none: download with img2dataset first." if "url" in columns else ""
        raise ValueError(
            f"{table} has no column of images; say which it is by `image:`; there are: {there}.{hint}"
        )
    kind = columns[chosen["image"]]
    if kind not in ("bytes", "picture", "path"):
        raise ValueError(f"{table}: the column {chosen['image']!r} holds neither bytes nor paths of images.")
    others = [
        n for n, kind in columns.items() if n not in chosen.values() and kind not in ("bytes", "picture")
    ]
    return Columns(kind=kind, others=tuple(others), **chosen)


def _default(role: str, columns: Mapping[str, Kind], taken: Any) -> str | None:
    by_name = {name.lower(): name for name in reversed(list(columns)) if name not in taken}
    if role != "image":
        return next((by_name[name] for name in DEFAULTS[role] if name in by_name), None)
    # A column that holds pictures is the image before one that only names them, whatever they are called.
    orders: Sequence[tuple[Kind, bool]] = (("picture", False), ("bytes", False), ("path", True))
    for kind, by_name_only in orders:
        fitting = [name for name, one in columns.items() if one == kind]
        named = [by_name[n] for n in DEFAULTS["image"] if n in by_name and by_name[n] in fitting]
        if named or (fitting and not by_name_only):
            return (named or fitting)[0]
    return None
