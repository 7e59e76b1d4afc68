"""From a recipe's YAML and the command line's flags to checked stages.

Mistakes are gathered and told together, one line each, with the line of the file or the flag that made them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.recipe import yaml12
from pipelines.recipe.flags import Flag, merge
from pipelines.recipe.schema import Schema
from pipelines.recipe.spelling import near
from pipelines.stage import ShardStage, Stage

RECIPES = Path(__file__).with_name("recipes")
STAGE_NAME = re.compile(r"[a-z][a-z0-9_]*")
RECIPE_NAME = re.compile(r"[a-z][a-z0-9_-]*")
STAGE = "stage"
AnyStage = ShardStage | Stage


@dataclass(frozen=True)
class Recipe:
    name: str
    stages: dict[str, AnyStage]
    """The recipe's name for a stage -> the stage; each stands behind those it reads."""
    text: str = ""
    """Resolved YAML (flags merged, paths absolute): the record of the run, loadable anywhere."""


def shipped() -> dict[str, Path]:
    """The recipes that come with the project, by bare name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def about(path: Path) -> list[str]:
    """The comment that opens a recipe: its command, its cost, and the score to expect."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return lines


def find(reference: str) -> Path:
    """A recipe's file, from its path or a shipped one's bare name."""
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    if "/" in reference or path.suffix in (".yaml", ".yml"):
        raise ValueError(f"there is no recipe {reference}; `latentmill init DIR` writes one for your images.")
    if reference not in shipped():
        raise ValueError(f"no recipe is called {reference!r}{near(reference, shipped())}")
    return shipped()[reference]


def load(reference: str | Path, flags: Sequence[str] = ()) -> Recipe:
    """Reads a recipe (a path, or a shipped one's name) with `flags` (["--images.size", "64"]) merged into it.

    Raises `ValueError` with one line a mistake.
    """
    path = find(str(reference))
    return parse(
        path.read_text(encoding="utf-8"), name=str(reference), folder=path.parent, flags=flags, stem=path.stem
    )


def parse(text: str, *, name: str, folder: Path, flags: Sequence[str] = (), stem: str = "recipe") -> Recipe:
    """`load` from text: `name` stands in front of line numbers, `folder` is where its paths start."""
    document = yaml12.read(text, name)
    tree = document.tree
    if not isinstance(tree, dict) or not isinstance(tree.get("stages"), dict) or not tree["stages"]:
        raise ValueError(f"{name}: a recipe has a `name` and, under `stages`, at least one stage.")
    mistakes: dict[yaml12.Place, str] = {
        (key,): f"a recipe has no {key!r}{near(key, ('name', 'stages'))}"
        for key in tree
        if key not in ("name", "stages")
    }
    title = tree.get("name", stem)
    if not isinstance(title, str) or not RECIPE_NAME.fullmatch(title):
        mistakes[("name",)] = (
            f"{title!r} is no recipe name; it starts with a-z and goes on with a-z, 0-9, _ and -."
        )
    schema = Schema(folder.absolute(), Path.cwd())
    kinds, branches = {}, {}
    for stage, branch in merge(tree["stages"], flags).items():
        kind = _stage_kind(stage, branch, mistakes)
        if kind is not None:
            kinds[stage], branches[stage] = kind, schema.stage(kind, branch, (stage,))
    mistakes |= {("stages", *place): message for place, message in schema.mistakes.items()}
    stages, judged = _validate(kinds, branches, schema)
    mistakes = judged | mistakes
    if not mistakes:
        mistakes = _references(stages)
    if mistakes:
        raise ValueError(_told(mistakes, name, document, schema))
    record = {"name": title, "stages": {s: {"stage": kinds[s].name()} | branches[s] for s in kinds}}
    return Recipe(title, _ordered(stages, name), yaml12.write(record))


def _stage_kind(stage: str, branch: Any, mistakes: dict[yaml12.Place, str]) -> type[AnyStage] | None:
    from pipelines.stages import STAGES
    from pipelines.stages import load as load_stage

    place = ("stages", stage)
    if not STAGE_NAME.fullmatch(stage):
        mistakes[place] = f"{stage!r} is no stage name; it starts with a-z and goes on with a-z, 0-9 and _."
        return None
    kind = branch.get("stage") if isinstance(branch, dict) else None
    kind = kind.text if isinstance(kind, Flag) else kind
    if kind is None:
        mistakes[place] = (
            f"say which stage it is, as in {stage}: {{stage: {next(iter(STAGES), 'ingest')}, ...}}."
        )
        return None
    if kind not in STAGES:
        mistakes[(*place, "stage")] = f"there is no stage {kind!r}{near(str(kind), STAGES)}"
        return None
    return load_stage(kind)


def _validate(
    kinds: Mapping[str, type[AnyStage]], branches: Mapping[str, Any], schema: Schema
) -> tuple[dict[str, AnyStage], dict[yaml12.Place, str]]:
    """The stages, or what pydantic says against them."""
    import pydantic

    stages: dict[str, AnyStage] = {}
    found: dict[yaml12.Place, list[str]] = {}
    for name, kind in kinds.items():
        try:
            given = json.dumps({STAGE: branches[name]})
            stages[name] = _adapter(kind).validate_json(given, strict=True)[STAGE]
        except pydantic.ValidationError as error:
            for one in error.errors(include_url=False):
                place = _place((name, *one["loc"][1:]), branches, schema)
                if place is None or any(m[: len(place)] == place[: len(m)] for m in schema.mistakes):
                    continue
                found.setdefault(("stages", *place), []).append(_sentence(one))
    if found:
        stages = {}
    return stages, {place: " or ".join(dict.fromkeys(messages)) for place, messages in found.items()}


@functools.cache
def _adapter(kind: type[AnyStage]) -> Any:
    """Judges {STAGE: a stage's tree}; made once for each kind, for it takes pydantic a tenth of a second."""
    import pydantic
    from typing_extensions import TypedDict

    one: Any = TypedDict("one", {STAGE: kind})  # type: ignore[misc]
    one.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")  # the dataclasses below it inherit this
    return pydantic.TypeAdapter(one)


def _place(location: tuple[str | int, ...], tree: Any, schema: Schema) -> yaml12.Place | None:
    """Where in the tree pydantic's location lies, less the union members that it names in between.

    None for an error about a member that the recipe did not choose.
    """
    place: yaml12.Place = ()
    step: Any
    for n, step in enumerate(location):
        last = n == len(location) - 1
        if isinstance(tree, list) and isinstance(step, int):
            tree = tree[step] if step < len(tree) else None
            place = (*place, step)
        elif isinstance(tree, dict) and step in tree:
            tree = tree[step]
            place = (*place, step)
        elif isinstance(tree, dict):
            chosen = schema.members.get(place)
            if chosen and step in (chosen.__name__, tree.get("kind")):
                continue
            if not last:
                return None
            place = (*place, step)  # a field that is missing
    return place


MUST_BE = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "dataclass": "a mapping",
    "none_required": "null",
    "path": "a path",
}


def _sentence(error: Any) -> str:
    kind: str = error["type"]
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return "is needed and missing."
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    given = json.dumps(error["input"], ensure_ascii=False, default=str)
    given = given if len(given) < 60 else given[:57] + "..."
    if kind == "literal_error":
        return f"must be {error['ctx']['expected']}, not {given}."
    must = next((text for start, text in MUST_BE.items() if kind.startswith(start)), None)
    if must is None:
        return f"{error['msg']} (it is {given})."
    quote = "; put it in quotes" if must == "text" and not isinstance(error["input"], (dict, list)) else ""
    return f"must be {must}, not {given}{quote}."


def _references(stages: Mapping[str, AnyStage]) -> dict[yaml12.Place, str]:
    """Inputs that name no stage, one of another kind, or one that does not suit."""
    mistakes: dict[yaml12.Place, str] = {}
    for name, stage in stages.items():
        made: dict[str, AnyStage] = {}
        for field, reference in stage.named().items():
            if reference is None or external(reference):
                continue
            wanted = stage.mark_of(field)
            first, several, number = field.partition(".")
            place = ("stages", name, first, int(number)) if several else ("stages", name, first)
            if reference not in stages:
                others = [s for s in stages if s != name and stages[s].output == wanted.kind]
                mistakes[place] = (
                    f"no stage is called {reference!r}{near(reference, others)} "
                    "A dataset or snapshot outside the recipe is written as a path with a /."
                )
            elif stages[reference].output != wanted.kind:
                other = f"{reference!r} ({stages[reference].name()}) makes a {stages[reference].output}"
                mistakes[place] = f"takes a {wanted.kind}, but {other}."
            else:
                made[field] = stages[reference]
        mistakes |= {("stages", name, field): text for field, text in stage.unsuited(made).items()}
    return mistakes


def external(reference: str) -> bool:
    """True for a path, URL or registry name; False for a stage of the recipe."""
    return "/" in reference or ":" in reference


def _ordered(stages: Mapping[str, AnyStage], name: str) -> dict[str, AnyStage]:
    """Each stage behind those it reads, otherwise in the recipe's order."""
    reads = {
        s: [r for r in stage.named().values() if r is not None and not external(r)]
        for s, stage in stages.items()
    }
    ordered: dict[str, AnyStage] = {}

    def visit(stage: str, above: tuple[str, ...]) -> None:
        if stage in above:
            circle = " <- ".join((*above[above.index(stage) :], stage))
            raise ValueError(f"{name}: stages wait for one another: {circle}.")
        if stage not in ordered:
            for read in reads[stage]:
                visit(read, (*above, stage))
            ordered[stage] = stages[stage]

    for stage in stages:
        visit(stage, ())
    return ordered


def _told(mistakes: Mapping[yaml12.Place, str], name: str, document: yaml12.Document, schema: Schema) -> str:
    """One line a mistake, in the file's order."""

    def line(place: yaml12.Place) -> int:
        while place and place not in document.lines:
            place = place[:-1]
        return document.lines.get(place, 1)

    told = []
    for place in sorted(mistakes, key=line):
        inner = place[1:] if place[0] == "stages" else place
        dotted = ".".join(map(str, inner))
        if any(inner[:n] in schema.flagged for n in range(1, len(inner) + 1)):
            told.append(f"--{dotted}: {mistakes[place]}")
        else:
            told.append(f"{name}:{line(place)}: {dotted}: {mistakes[place]}")
    return "\n".join(told)
