"""What a container says of an image, brought to what JSON, Parquet and a terminal can hold."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping
from typing import Any

from pipelines.sources.metadata import TEXT_LENGTH

DEPTH = 8
"""Lists and mappings within one another; what lies deeper is left out."""
ITEMS = 4096
"""Of a list or a mapping."""
FACTS_BYTES = 1 << 18
"""Of one image's facts, as JSON."""
LEFT_OUT = "facts_left_out"
"""The fact that names those that were too large or no data, if there are any."""
_NAME_LENGTH = 256
_INTEGER = 1 << 63


def facts(said: Mapping[Any, Any]) -> dict[str, Any]:
    """The facts that can be held: no bytes, no NaN, no control characters, nothing deep, and capped in size.

    A `caption` is the `text` where there is none.
    """
    kept: dict[str, Any] = {}
    left: list[str] = []
    size = 0
    for name, value in list(said.items())[: 2 * ITEMS]:
        label = words(str(name)[:_NAME_LENGTH])
        if label is None or value is None:
            continue
        cleaned = clean(value)
        if cleaned is None:
            # Nothing was said in an empty text or in a NaN; in all else something was.
            left += [] if isinstance(value, (str, float)) else [label]
            continue
        cost = len(label) + len(json.dumps(cleaned, ensure_ascii=False).encode("utf-8", "replace"))
        if size + cost > FACTS_BYTES or len(kept) >= ITEMS:
            left.append(label)
            continue
        size += cost
        kept[label] = cleaned
    if left:
        kept[LEFT_OUT] = left[:ITEMS]
    if "text" not in kept and isinstance(kept.get("caption"), str):
        kept["text"] = kept.pop("caption")
    return kept


def joined(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What two rows say of one image: further texts are kept, all else is as it was said first."""
    told = [text for one in (first, other) for text in one.get("texts") or [one.get("text")]]
    texts = list(dict.fromkeys(text for text in told if isinstance(text, str)))
    return {
        **other,
        **first,
        **({"text": texts[0]} if texts else {}),
        **({"texts": texts} if texts[1:] else {}),
    }


def parsed(data: bytes, names: Mapping[str, str | None] | None = None) -> dict[str, Any] | None:
    """The facts in a JSON object; None if it is none, deeper than the interpreter goes, or not UTF-8.

    `names`: a fact's name -> the field that it is in.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    for name, field in (names or {}).items():
        if field is not None and field in value:
            value[name] = value.pop(field)
    return facts(value)


def words(text: str) -> str | None:
    """A text without control characters, at most `TEXT_LENGTH` long; None if nothing is left."""
    kept = "".join(c if c.isprintable() or c in "\n\t" else " " for c in text[: 4 * TEXT_LENGTH])
    return kept.encode("utf-8", "replace").decode().strip()[:TEXT_LENGTH] or None


def clean(value: Any, depth: int = 0) -> Any:
    """One value as `facts` keeps it; None where nothing of it can be kept."""
    if isinstance(value, str):
        return words(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -_INTEGER <= value < _INTEGER else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    if depth == DEPTH:
        return None
    if isinstance(value, (list, tuple)):
        return None if len(value) > ITEMS else [clean(v, depth + 1) for v in value]
    if isinstance(value, Mapping):
        if len(value) > ITEMS:
            return None
        pairs = ((words(str(k)[:_NAME_LENGTH]), clean(v, depth + 1)) for k, v in value.items())
        return {k: v for k, v in pairs if k is not None and v is not None}
    return None
