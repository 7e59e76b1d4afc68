"""`latentmill gc`: remove from a store what no recipe, alias or run uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, program, say_json, store

if TYPE_CHECKING:
    from pipelines.inspection.garbage import Findings, Garbage

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, kw_only=True)
class Gc:
    """Show what no recipe, alias or run of a store uses; with --delete, remove it.

    In use is what the last run of each recipe made or read, what runs in progress use, and what registered
    models with an alias were made from (and the champion before). All the rest can be made again.
    """

    recipes: Annotated[Positional[tuple[str, ...]], shown_as("[RECIPE ...]", default="")] = ()
    """Recipes whose results stay too, though others were run since; as their files are now."""
    delete: Switch = False
    """Remove it."""
    older_than: Annotated[str, shown_as("TIME")] = "1d"
    """Only what has lain unchanged for so long: 30min, 12h, 7d."""
    without_registry: Switch = False
    """Do not ask MLflow: what only an alias holds is removed as well."""
    store: StorePath = None
    """The store."""
    json: Switch = False
    """Print JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        from pipelines import config
        from pipelines.inspection.garbage import find, sweep

        place, grace = store(self.store), seconds(self.older_than)
        recipes = [config.load(recipe) for recipe in self.recipes]
        found = find(place, grace=grace, recipes=recipes, registry=not self.without_registry)
        removed: list[Garbage] = []
        left: list[tuple[Garbage, str]] = []
        if self.delete and found.garbage:
            for garbage, why in sweep(
                place, grace=grace, recipes=recipes, registry=not self.without_registry
            ):
                if why:
                    left.append((garbage, why))
                else:
                    removed.append(garbage)
        if self.json:
            say_json(_as_json(found, removed, left, deleted=self.delete))
        else:
            self._show(found, removed, left)
        return 0

    def _show(self, found: Findings, removed: list[Garbage], left: list[tuple[Garbage, str]]) -> None:
        from pipelines.commands.plan import size

        screen = console()
        shown = removed if self.delete else found.garbage
        if shown:
            screen.print(_table(shown))
            screen.print()
        total = size(sum(one.bytes for one in shown))
        if self.delete:
            told = [f"Removed {total}." if shown else "Nothing was removed."]
            told += [f"left       {one.place}: {why}" for one, why in left]
        elif shown:
            told = [f"{total} can be removed: {program()} gc --delete"]
        else:
            told = ["Nothing to remove."]
        told.append(f"In use: {found.used_folders:,} folders, {size(found.used_bytes)}.")
        if found.young:
            count, young = len(found.young), size(sum(one.bytes for one in found.young))
            told.append(
                f"Unused, but changed in the last {self.older_than}: {count:,}, {young} (--older-than)."
            )
        if found.unsure:
            told.append(
                f"Checkpoints all stay: which are those of {found.unsure[0]} cannot be told, as its stage is "
                "not of this version."
            )
        for line in told:
            screen.print(line, markup=False, soft_wrap=True)


def seconds(text: str) -> float:
    """30min, 12h, 7d, or a bare 0. `ValueError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)", text) or re.fullmatch(r"(0)()", text)
    if not match:
        raise ValueError(f'--older-than is "{text}"; write 30min, 12h or 7d.')
    return float(match[1]) * UNITS.get(match[2], 0.0)


def _table(garbage: Sequence[Garbage]) -> Any:
    """A row for each stage and reason, the largest first."""
    from rich.table import Table

    from pipelines.commands.plan import size
    from pipelines.inspection.garbage import REASONS

    groups: dict[tuple[str, str], list[Garbage]] = {}
    for one in garbage:
        groups.setdefault((one.stage, one.reason), []).append(one)
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    for _ in range(2):
        rows.add_column(no_wrap=True, justify="right")
    rows.add_column(overflow="ellipsis")
    for (stage, reason), of in sorted(groups.items(), key=lambda pair: -sum(g.bytes for g in pair[1])):
        rows.add_row(stage, f"{len(of):,}", size(sum(one.bytes for one in of)), REASONS[reason])  # pyright: ignore[reportArgumentType]
    return rows


def _as_json(
    found: Findings, removed: list[Garbage], left: list[tuple[Garbage, str]], *, deleted: bool
) -> dict[str, Any]:
    told = {
        "garbage": [asdict(one) for one in found.garbage],
        "bytes": sum(one.bytes for one in found.garbage),
        "young": [asdict(one) for one in found.young],
        "in_use": {"folders": found.used_folders, "bytes": found.used_bytes},
        "unsure": found.unsure,
    }
    if deleted:
        told["removed"] = [asdict(one) for one in removed]
        told["left"] = [{**asdict(one), "why": why} for one, why in left]
    return told
