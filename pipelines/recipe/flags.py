"""A recipe's fields on the command line: `--stage.field value`, merged into its tree before it is judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.recipe.spelling import near

FLAG = re.compile(r"--([A-Za-z_][\w-]*(?:\.[\w-]+)+)(?:=(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Flag:
    """A leaf that the command line set; the field's type decides how its text is read."""

    text: str


class FlagMapping(dict[str, Any]):
    """A branch that only flags made: what they leave unsaid keeps its default."""


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts a command's own arguments from the recipe's flags, which are those with a dot in their name."""
    own: list[str] = []
    flags: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*own, argument, *rest], flags
        match = FLAG.fullmatch(argument)
        if not match:
            own.append(argument)
            continue
        flags.append(argument)
        if match[2] is None and rest and not rest[0].startswith("--"):
            flags.append(rest.pop(0))
    return own, flags


def parse(flags: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """(place, text) of each flag; `ValueError` where one is no flag or lacks its value."""
    found: list[tuple[tuple[str, ...], str]] = []
    rest = list(flags)
    while rest:
        argument = rest.pop(0)
        match = FLAG.fullmatch(argument)
        if not match:
            raise ValueError(f"{argument}: not a flag of a recipe; those read --stage.field value.")
        value = match[2]
        if value is None:
            if not rest or FLAG.fullmatch(rest[0]):
                raise ValueError(f"{argument}: needs a value, as in {argument} VALUE.")
            value = rest.pop(0)
        found.append((tuple(match[1].split(".")), value))
    return found


def merge(stages: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """A copy of the stages' trees with the flags in it; `-` may stand for `_`, digits name a list's item."""
    merged = {name: _copy(branch) for name, branch in stages.items()}
    for place, text in parse(flags):
        if _spelled(merged, place[0]) not in merged:
            raise ValueError(
                f"--{'.'.join(place)}: the recipe has no stage {place[0]!r}{near(place[0], merged)}"
            )
        branch: Any = merged
        for n, word in enumerate(place):
            last = n == len(place) - 1
            if isinstance(branch, list):
                if not word.isdigit() or int(word) >= len(branch):
                    raise ValueError(
                        f"--{'.'.join(place)}: {word!r} names none of the {len(branch)} items there."
                    )
                key: Any = int(word)
            else:
                key = _spelled(branch, word)
            if last:
                branch[key] = Flag(text)
            else:
                below = branch[key] if isinstance(branch, list) else branch.get(key)
                if not isinstance(below, (dict, list)):
                    below = branch[key] = FlagMapping()
                branch = below
    return merged


def _spelled(branch: dict[str, Any], word: str) -> str:
    return word if word in branch else word.replace("-", "_")


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree
