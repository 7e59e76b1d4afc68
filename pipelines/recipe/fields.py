"""What can be set in a recipe's stages: each field as a flag, with its value and what it means."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.recipe.schema import plain


@dataclass(frozen=True, kw_only=True)
class Field:
    flag: str
    """`--images.size`."""
    value: Any
    """JSON types; of a group, whose fields follow, nothing."""
    group: bool = False
    meaning: str
    execution: bool
    """Whether it decides how fast, and never what comes out."""


def fields(name: str, owner: Any, *, execution: bool = False) -> Iterator[Field]:
    """All fields of a stage or a config within it, at every depth; `name` is the stage's in its recipe."""
    meanings = docstrings(type(owner))
    for f in dataclasses.fields(owner):
        value = getattr(owner, f.name)
        only_execution = execution or bool(f.metadata.get("execution"))
        flag, meaning = f"{name}.{f.name}", meanings.get(f.name, "")
        if dataclasses.is_dataclass(value):
            if meaning:
                yield Field(
                    flag=f"--{flag}", value=None, group=True, meaning=meaning, execution=only_execution
                )
            yield from fields(flag, value, execution=only_execution)
        else:
            yield Field(flag=f"--{flag}", value=plain(value), meaning=meaning, execution=only_execution)


@functools.cache
def docstrings(owner: type) -> dict[str, str]:
    """The text below each field, of the class and of those it extends, on one line each."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = " ".join(words.split())
                case _:
                    continue
    return found
