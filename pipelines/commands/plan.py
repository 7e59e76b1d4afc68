"""`latentmill plan`: what a run would do, and what it would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps as write_json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, say_json, store

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.config import Recipe
    from pipelines.costs.estimate import Cost, Costs
    from pipelines.runner.plan import Plan as PipelinePlan

MARKS = {"done": ("green", "✓"), "run": ("bold", "▸"), "after": ("dim", "·"), "missing": ("yellow", "?")}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Show what `run` would do and why, and the bytes and hours it would take: nothing is run.

    A source that is not there yet is supposed to have --images images.
    """

    recipe: Annotated[Positional[str], shown_as("RECIPE")]
    """A recipe's file, or the name of a shipped one."""
    until: Annotated[str | None, shown_as("STAGE")] = None
    """Only this stage and those it needs."""
    force: Annotated[UseAppendAction[tuple[str, ...]], shown_as("STAGE")] = ()
    """A stage that would run though it is finished; may be repeated."""
    images: Annotated[int | None, shown_as("INT", default="(1,000,000)")] = None
    """Images of a source that is not there yet."""
    gpu: Literal["h100", "a100"] = "h100"
    """Which GPU is reckoned with, where stages ask for GPUs."""
    measure: Switch = False
    """Run each network here for some seconds, and reckon with that."""
    gpu_hour: Annotated[float | None, shown_as("PRICE")] = None
    """Price of an hour of one GPU: adds what the run would cost."""
    store: StorePath = None
    """Where results lie."""
    fields: Switch = False
    """List what can be set in its stages, as flags, instead."""
    json: Switch = False
    """Print JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        from pipelines import config
        from pipelines.costs.estimate import estimate
        from pipelines.runner.plan import plan

        if self.images is not None and self.images < 1:
            raise ValueError(f"--images is {self.images}; it must be at least 1.")
        recipe = config.load(self.recipe, flags)
        if self.fields:
            return self._fields(recipe)
        planned = plan(recipe, store(self.store), until=self.until, force=self.force, lenient=True)
        costs = estimate(planned, images=self.images, gpu=self.gpu, measure=self.measure)
        if self.json:
            say_json(self._as_json(planned, costs))
        else:
            screen = console()
            screen.print(table(planned, costs))
            if any(cost.columns for cost in costs.stages.values()):
                screen.print()
                screen.print(stored(costs))
            for line in [*_missing(planned), *self._told(costs)]:
                screen.print(line, markup=False, style="dim", soft_wrap=True)
        return 0

    def _as_json(self, planned: PipelinePlan, costs: Costs) -> dict[str, Any]:
        price = None if self.gpu_hour is None else self.gpu_hour * costs.gpu_hours
        return {
            "recipe": planned.recipe,
            "store": planned.store,
            "stages": [s.as_json() | {"cost": asdict(costs.stages[s.name])} for s in planned.stages],
            "cost": asdict(costs.total) | {"gpu_hours": costs.gpu_hours, "price": price},
            "assumptions": list(costs.assumptions),
        }

    def _told(self, costs: Costs) -> list[str]:
        """What all that is left takes, and what was supposed to say so; nothing where nothing is known."""
        total = costs.total
        if not total.seconds:
            return []
        parts = [f"{size(total.bytes)} in the store", f"{duration(total.seconds)} one after another"]
        if costs.gpu_hours:
            parts.append(f"{costs.gpu_hours:,.1f} GPU hours")
            if self.gpu_hour is not None:
                parts.append(f"{self.gpu_hour * costs.gpu_hours:,.0f} at {self.gpu_hour:g} an hour")
        parts.append(f"{total.flops:.1e} FLOP")
        told = ["", f"about      {', '.join(parts)}"]
        head = "supposing  "
        for line in costs.assumptions:
            told.append(head + line)
            head = " " * len(head)
        return told

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


def table(planned: PipelinePlan, costs: Costs | None = None) -> RenderableType:
    """One line a stage: its state, what it does, what it takes, and why it runs."""
    from rich.table import Table
    from rich.text import Text

    kinds = {s.name: s.stage.name() for s in planned.stages}
    names = {name: name if name == kind else f"{name} ({kind})" for name, kind in kinds.items()}
    rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
    rows.add_column(width=1)
    rows.add_column(no_wrap=True, min_width=max(map(len, names.values())))
    rows.add_column(no_wrap=True, overflow="ellipsis", ratio=3)
    for _ in range(2 if costs else 0):
        rows.add_column(no_wrap=True, justify="right")
    rows.add_column(no_wrap=True, overflow="ellipsis", ratio=2)
    for stage in planned.stages:
        style, mark = MARKS[stage.state]
        why = "finished" if stage.state == "done" else stage.reason
        told = [Text(mark, style), Text(names[stage.name], style), Text(stage.stage.summary())]
        told += [Text(text, "dim") for text in _cost(costs.stages[stage.name])] if costs else []
        rows.add_row(*told, Text(why, "dim"))
    return rows


def stored(costs: Costs) -> RenderableType:
    """One line a column of a dataset: what it takes an image, and for a million."""
    from rich.table import Table
    from rich.text import Text

    rows = Table.grid(padding=(0, 2, 0, 0))
    for side in ("left", "left", "right", "right", "right"):
        rows.add_column(no_wrap=True, justify=side)
    heads = ("stored", "column", "an image", "1M images", "time for 1M")
    rows.add_row(*(Text(head, "dim") for head in heads))
    for name, cost in costs.stages.items():
        if not cost.columns:
            continue
        about = "" if cost.measured else "~"
        times = f"~{duration(cost.for_million)}" if cost.for_million else ""
        for n, (column, each) in enumerate(cost.columns.items()):
            told = (f"{about}{size(each)}", f"{about}{size(1e6 * each)}")
            rows.add_row("" if n else name, Text(column, "dim"), *told, "" if n else times)
    return rows


def _missing(planned: PipelinePlan) -> list[str]:
    """What is not there, whole: a table cuts it off."""
    told = [f"{s.name}: {s.reason}" for s in planned.stages if s.state == "missing"]
    return ["", *(f"missing    {line}" for line in told)] if told else []


def _cost(cost: Cost) -> tuple[str, str]:
    about = "" if cost.measured else "~"
    return (
        "" if cost.bytes is None else about + size(cost.bytes),
        "" if cost.seconds is None else about + duration(cost.seconds),
    )


def size(count: float | None) -> str:
    """740 B, 3.1 MB, 1.2 TB."""
    count = count or 0.0
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float | None) -> str:
    """40 s, 12 min, 3.5 h, 20 days."""
    seconds = seconds or 0.0
    for unit, length, most in (("s", 1, 100), ("min", 60, 100)):
        if seconds < most * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 96 * 3600 else f"{seconds / 86400:.0f} days"
