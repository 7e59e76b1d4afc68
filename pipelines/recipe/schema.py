"""Brings a recipe's tree in line with the stages' dataclasses, before pydantic judges every value's type.

Here is what types alone know: which union member a `kind` names, which word is no field, which text is a
path, how a flag's text is to be read, and that a branch states only its departures from the field's default.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pipelines.pretrained.reference import spelled
from pipelines.recipe import yaml12
from pipelines.recipe.flags import Flag, FlagMapping
from pipelines.recipe.spelling import near
from pipelines.stage import Input

PATH_FIELDS = ("path", "file", "tokenizer")
PINNED = re.compile(r"@[0-9a-f]{40}$")
"""How a model of the hub at a commit ends."""
URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def absolute(text: str, folder: Path) -> str:
    """A path as seen from `folder`; URLs and registry references stay as they are."""
    if not text or URL.match(text):
        return text
    return os.path.normpath(folder / os.path.expanduser(text))


@dataclass
class Schema:
    """Walks one recipe; what is wrong with its words is gathered in `mistakes`, the rest returned."""

    recipe_folder: Path
    working_folder: Path
    mistakes: dict[yaml12.Place, str] = field(default_factory=dict)
    flagged: set[yaml12.Place] = field(default_factory=set)
    """Places that the command line set."""
    members: dict[yaml12.Place, type] = field(default_factory=dict)
    """Which member of a union stands at a place."""

    def stage(self, kind: type, branch: Any, place: yaml12.Place) -> Any:
        """The tree of one stage, less its `stage` key."""
        if not isinstance(branch, dict):
            return branch
        switched = isinstance(branch.get("stage"), Flag)
        return self._fields(
            kind, {k: v for k, v in branch.items() if k != "stage"}, dataclasses.MISSING, place, switched
        )

    def _value(self, annotation: Any, value: Any, default: Any, place: yaml12.Place) -> Any:
        if typing.get_origin(annotation) is Annotated:
            marks = [mark for mark in annotation.__metadata__ if isinstance(mark, Input)]
            annotation = typing.get_args(annotation)[0]
            if marks and not isinstance(value, dict):
                return self._reference(value, annotation, place, marks[0])
        members = _members(annotation)
        if isinstance(value, Flag):
            self.flagged.add(place)
            value = self._flag(value.text, members, place)
        elif isinstance(value, FlagMapping):
            self.flagged.add(place)
        classes = [m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)]
        if isinstance(value, dict) and classes:
            return self._branch(classes, value, default, place)
        if isinstance(value, str) and (Path in members or (str in members and place[-1] in PATH_FIELDS)):
            folder = self._folder(place)
            return (PINNED.search(value) and spelled(value, folder)) or absolute(value, folder)
        if isinstance(value, list):
            items = next((typing.get_args(m) for m in members if typing.get_origin(m) in (tuple, list)), ())
            kinds = [items[min(n, len(items) - 1)] if items else Any for n in range(len(value))]
            if len(items) == 2 and items[1] is Ellipsis:
                kinds = [items[0]] * len(value)
            return [
                self._value(k, v, dataclasses.MISSING, (*place, n))
                for n, (k, v) in enumerate(zip(kinds, value, strict=True))
            ]
        if isinstance(value, dict):
            arguments = next((typing.get_args(m) for m in members if _is_mapping(m)), ())
            kind = arguments[1] if len(arguments) == 2 else Any
            kept = {}
            if isinstance(value, FlagMapping) and isinstance(default, Mapping):
                kept = {k: plain(v) for k, v in default.items() if k not in value}
            return kept | {
                k: self._value(kind, v, dataclasses.MISSING, (*place, k)) for k, v in value.items()
            }
        return value

    def _branch(
        self, classes: Sequence[type], value: dict[str, Any], default: Any, place: yaml12.Place
    ) -> Any:
        """One dataclass, chosen by `kind` where the field allows several."""
        kind = value.get("kind")
        switched = isinstance(kind, Flag)
        if isinstance(kind, Flag):
            self.flagged.add((*place, "kind"))
            kind = kind.text
        if len(classes) == 1:
            return self._fields(classes[0], value, default, place, switched)
        known = {k: c for c in classes for k in _kinds(c)}
        if kind is None and type(default) in classes:
            kind = next(k for k, c in known.items() if c is type(default))
        if kind is None:
            self.mistakes[place] = f"needs a `kind`: one of {', '.join(known)}."
            return None
        if kind not in known:
            self.mistakes[(*place, "kind")] = f"there is no kind {kind!r}{near(str(kind), known)}"
            return None
        self.members[place] = known[kind]
        value = {k: v for k, v in value.items() if k != "kind"}
        return {"kind": kind} | self._fields(known[kind], value, default, place, switched)

    def _fields(
        self, owner: type, value: dict[str, Any], default: Any, place: yaml12.Place, switched: bool
    ) -> dict[str, Any]:
        """`value` with its fields walked; a `switched` kind drops what the recipe said of the former one."""
        hints = typing.get_type_hints(owner, include_extras=True)
        fields = {f.name: f for f in dataclasses.fields(owner) if f.init}
        walked = departures(default, owner) if type(default) is owner else {}
        for key, below in value.items():
            at = (*place, key)
            if key in fields:
                inherited = getattr(default, key) if type(default) is owner else _default(fields[key])
                walked[key] = self._value(hints[key], below, inherited, at)
            elif not (switched and not isinstance(below, (Flag, FlagMapping))):
                if isinstance(below, (Flag, FlagMapping)):
                    self.flagged.add(at)
                self.mistakes[at] = f"there is no such field{near(key, fields)}"
        return walked

    def _flag(self, text: str, members: list[Any], place: yaml12.Place) -> Any:
        """Text fields take a flag's text as it is; others read it as YAML."""
        if type(None) in members and text in ("null", "none", "~"):
            return None
        texts = [m for m in members if m is str or m is Path or _is_text_literal(m)]
        others = [m for m in members if m is not type(None) and m not in texts]
        if texts and not others:
            return text
        try:
            value = yaml12.read(text, "--" + ".".join(map(str, place))).tree
        except ValueError as error:
            if texts:
                return text
            self.mistakes[place] = str(error).partition(": ")[2]
            return None
        return text if texts and not isinstance(value, (int, float, list, dict)) else value

    def _reference(self, value: Any, annotation: Any, place: yaml12.Place, mark: Input) -> Any:
        """Names of stages stay; a path (it has a `/`) is made absolute, a model of the hub marked `hub:`."""
        if isinstance(value, Flag):
            self.flagged.add(place)
            value = self._flag(value.text, _members(annotation), place)
        if not isinstance(value, str) or "/" not in value:
            return value
        folder = self._folder(place)
        return (mark.kind == "snapshot" and spelled(value, folder)) or absolute(value, folder)

    def _folder(self, place: yaml12.Place) -> Path:
        flagged = any(place[:n] in self.flagged for n in range(1, len(place) + 1))
        return self.working_folder if flagged else self.recipe_folder


def departures(value: Any, owner: type) -> dict[str, Any]:
    """What sets an instance apart from its class's defaults, as a tree."""
    return {
        f.name: plain(getattr(value, f.name))
        for f in dataclasses.fields(owner)
        if f.init and getattr(value, f.name) != _default(f)
    }


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as JSON types, with their execution fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default


def _members(annotation: Any) -> list[Any]:
    """A union's members, or the annotation itself, less what `Annotated` adds."""
    if typing.get_origin(annotation) is Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [m for argument in typing.get_args(annotation) for m in _members(argument)]
    return [annotation]


def _kinds(owner: type) -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(owner).get("kind"))


def _is_mapping(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_text_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Literal and all(
        isinstance(a, str) for a in typing.get_args(annotation)
    )
