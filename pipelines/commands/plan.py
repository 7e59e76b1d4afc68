"""`latentmill plan`: what a run would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps as write_json
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, say_json, store

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.config import Recipe
    from pipelines.runner.plan import Plan as PipelinePlan

MARKS = {"done": ("green", "✓"), "run": ("bold", "▸"), "after": ("dim", "·")}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Show what `run` would do, and why: nothing is run."""

    recipe: Annotated[Positional[str], shown_as("RECIPE")]
    """A recipe's file, or the name of a shipped one."""
    until: Annotated[str | None, shown_as("STAGE")] = None
    """Only this stage and those it needs."""
    force: Annotated[UseAppendAction[tuple[str, ...]], shown_as("STAGE")] = ()
    """A stage that would run though it is finished; may be repeated."""
    store: StorePath = None
    """Where results lie."""
    fields: Switch = False
    """List what can be set in its stages, as flags, instead."""
    json: Switch = False
    """Print JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        from pipelines import config
        from pipelines.runner.plan import plan

        recipe = config.load(self.recipe, flags)
        if self.fields:
            return self._fields(recipe)
        planned = plan(recipe, store(self.store), until=self.until, force=self.force)
        if self.json:
            say_json(
                {
                    "recipe": planned.recipe,
                    "store": planned.store,
                    "stages": [s.as_json() for s in planned.stages],
                }
            )
        else:
            console().print(table(planned))
        return 0

    def _fields(self, recipe: Recipe) -> int:
        from rich.markup import escape
        from rich.padding import Padding
        from rich.text import Text

        from pipelines.recipe.fields import fields

        found = [f for name, stage in recipe.stages.items() for f in fields(name, stage)]
        if self.json:
            say_json([asdict(f) for f in found])
        else:
            screen = console()
            for f in found:
                value = "" if f.group else write_json(f.value, ensure_ascii=False)
                screen.print(f"[bold]{f.flag}[/] {escape(value)}", soft_wrap=True)
                if f.meaning:
                    screen.print(Padding(Text(f.meaning, "dim"), (0, 0, 0, 4)))
        return 0


def table(planned: PipelinePlan) -> RenderableType:
    """One line a stage: its state, what it takes, and why it runs."""
    from rich.table import Table
    from rich.text import Text

    kinds = {s.name: s.stage.name() for s in planned.stages}
    names = {name: name if name == kind else f"{name} ({kind})" for name, kind in kinds.items()}
    rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
    rows.add_column(width=1)
    rows.add_column(no_wrap=True, min_width=max(map(len, names.values())))
    rows.add_column(no_wrap=True, overflow="ellipsis", ratio=3)
    rows.add_column(no_wrap=True, overflow="ellipsis", ratio=2)
    for stage in planned.stages:
        style, mark = MARKS[stage.state]
        why = "finished" if stage.state == "done" else stage.reason
        told = (
            Text(mark, style),
            Text(names[stage.name], style),
            Text(stage.stage.summary()),
            Text(why, "dim"),
        )
        rows.add_row(*told)
    return rows
