"""What users ask a model for, brought into the words that it was trained with."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.places import at_hand

_FIELD = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One image that is asked for; None is unconditional in that respect."""

    prompt: str | None = None
    """As the text encoder is given it."""
    label: int | None = None


def formatted(template: str | None, prompt: str) -> str:
    """The prompt in the caption template that the model was trained with: "a red fox" -> "a 3D emoji of a
    red fox".

    A prompt that already reads like the template stays as it is, and so does any under a template with
    several fields, which one text cannot fill.
    """
    if template is None or len(_FIELD.findall(template)) != 1:
        return prompt
    before, after = _FIELD.split(template)
    if prompt.startswith(before) and prompt.endswith(after) and (before or after):
        return prompt
    return before + prompt + after


def class_id(name: str | int, classes: Sequence[str]) -> int:
    """A class by name, whatever its case, or by id. `ValueError` with the classes if there is no such one."""
    if not classes:
        raise ValueError(
            f"This model knows no classes, so {name!r} cannot be asked for; give a prompt or nothing."
        )
    if isinstance(name, int):
        if 0 <= name < len(classes):
            return name
        raise ValueError(f"There is no class {name}; ids go from 0 to {len(classes) - 1}.")
    if name in classes:
        return classes.index(name)
    lowered = {c.lower(): n for n, c in enumerate(classes)}
    if name.lower() in lowered:
        return lowered[name.lower()]
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f" Did you mean {classes[lowered[near[0]]]}?" if near else ""
    shown = ", ".join(classes[:40]) + (", ..." if len(classes) > 40 else "")
    raise ValueError(f"There is no class {name!r}.{hint} There are: {shown}.")


def asks(
    prompts: Sequence[str] | None,
    classes: Sequence[str | int] | None,
    *,
    known: Sequence[str],
    text: bool,
    template: str | None,
) -> list[Ask]:
    """Prompts and classes side by side, one of them repeated where it stands alone.

    Args:
        known: the model's class names.
        text: whether the model reads text.

    Raises:
        ValueError: the model cannot be asked so, or prompts and classes are of different number.
    """
    words, labels = list(prompts or ()), list(classes or ())
    if words and not text:
        raise ValueError(
            "This model reads no text: give classes, or neither."
            if known
            else "This model is unconditional: it takes no prompts and no classes."
        )
    count = max(len(words), len(labels))
    if words and labels and len(words) != len(labels) and min(len(words), len(labels)) != 1:
        raise ValueError(
            f"{len(words)} prompts and {len(labels)} classes: give equally many, or one of one kind."
        )
    ids = [class_id(name, known) for name in labels]
    return [
        Ask(
            prompt=formatted(template, words[n % len(words)]) if words else None,
            label=ids[n % len(ids)] if ids else None,
        )
        for n in range(count)
    ]


def read_file(path: Path) -> tuple[list[str], list[str]]:
    """Prompts and classes of a text file (a prompt a line) or of JSON lines with `prompt` and `label`.

    Raises:
        ValueError: the file is missing or empty, or a line does not say what the others do.
    """
    try:
        lines = [line.strip() for line in at_hand(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error}).") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path} has no prompts.")
    if path.suffix != ".jsonl":
        return lines, []
    prompts: list[str] = []
    classes: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON.") from error
        if not isinstance(record, dict) or not isinstance(record.get("prompt", record.get("label")), str):
            raise ValueError(
                f'{path}, line {number}: expected {{"prompt": ..., "label": ...}} or one of them.'
            )
        prompts += [record["prompt"]] if "prompt" in record else []
        classes += [record["label"]] if "label" in record else []
    if (prompts and len(prompts) != len(lines)) or (classes and len(classes) != len(lines)):
        raise ValueError(f"{path}: either every line has a prompt (a label) or none has.")
    return prompts, classes
