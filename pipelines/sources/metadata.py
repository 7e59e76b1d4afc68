"""What a source says of its images: metadata.csv or .jsonl, HuggingFace's ImageFolder convention."""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

NAMES = ("metadata.csv", "metadata.jsonl")
TEXT_LENGTH = 8192
"""Characters of a text that are kept."""


def parse(name: str, data: bytes) -> dict[str, dict[str, Any]]:
    """File name within the source -> its facts. Later rows of the same file add their text to `texts`.

    Raises:
        ValueError: a row that cannot be read, with its line.
    """
    folder = posixpath.dirname(name)
    facts: dict[str, dict[str, Any]] = {}
    rows = _csv(name, data) if name.endswith(".csv") else _jsonl(name, data)
    for line, row in rows:
        file = row.pop("file_name", None)
        if not isinstance(file, str) or not file:
            raise ValueError(f"{name}, line {line}: there is no file_name.")
        path = posixpath.normpath(posixpath.join(folder, file))
        said = {k: c for k, v in row.items() if k and (c := _clean(v)) is not None}
        if "text" not in said and isinstance(said.get("caption"), str):
            said["text"] = said.pop("caption")
        if path not in facts:
            facts[path] = said
        elif (text := said.get("text")) is not None:
            first = facts[path]
            texts = first.setdefault("texts", [first["text"]] if "text" in first else [])
            if text not in texts:
                texts.append(text)
            first.setdefault("text", text)
    return facts


def text(data: bytes) -> str | None:
    """The words of a sidecar file; None if it is empty."""
    value = _clean(data[: 4 * TEXT_LENGTH].decode("utf-8-sig", "replace"))
    return value if isinstance(value, str) else None


def scalars(facts: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The facts that an index can hold."""
    return {k: v for k, v in facts.items() if isinstance(v, (str, int, float, bool))}


def _csv(name: str, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_decode(name, data), newline=""))
    if "file_name" not in (reader.fieldnames or ()):
        raise ValueError(f"{name}: there is no column file_name.")
    try:
        for row in reader:
            yield (
                reader.line_num,
                {k: v for k, v in row.items() if isinstance(k, str) and v not in ("", None)},
            )
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: {error}.") from error


def _jsonl(name: str, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_decode(name, data).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}, line {number}: not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise ValueError(f"{name}, line {number}: not a JSON object.")
            yield number, row


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 (byte {error.start}); save it as UTF-8.") from error


def _clean(value: Any) -> Any:
    """The value as canonical JSON can hold it, without control characters, NaN or excess; None if empty."""
    if isinstance(value, str):
        kept = "".join(c if c.isprintable() or c in "\n\t" else " " for c in value)
        return kept.encode("utf-8", "replace").decode().strip()[:TEXT_LENGTH] or None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [c for v in value if (c := _clean(v)) is not None]
    if isinstance(value, dict):
        return {str(k): c for k, v in value.items() if (c := _clean(v)) is not None}
    return value
