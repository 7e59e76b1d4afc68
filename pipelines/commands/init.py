"""`latentmill init`: look at images, write a recipe for them and for this machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from pipelines.commands.arguments import Switch, shown_as
from pipelines.commands.console import console, program, say_json

if TYPE_CHECKING:
    from pipelines.recipe.survey import Survey

SHOWN_BROKEN = 5
SHOWN_LABELS = 6


@dataclass(frozen=True, kw_only=True)
class Init:
    """Look at a folder or zip archive of images and write a commented recipe that `run` takes as it is."""

    images: Annotated[Positional[Path], shown_as("DIR")]
    """The folder, or a zip archive."""
    out: Annotated[Path | None, shown_as("RECIPE.YAML")] = None
    """The recipe to write, if not DIR.yaml in the working folder."""
    force: Switch = False
    """Write over a recipe that is there."""
    seconds: float = 20.0
    """Time to decode images in; where that is too little, as many as it allows are looked at."""
    json: Switch = False
    """Print the findings as JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        from pipelines.recipe import starter
        from pipelines.recipe.machine import Machine
        from pipelines.recipe.survey import survey

        name = recipe_name(self.images)
        out = self.out or Path(f"{name}.yaml")
        if out.exists() and not self.force:
            raise ValueError(f"{out} is there already; --out names another file, --force writes over it.")
        found = survey(self.images.expanduser(), seconds=self.seconds)
        machine = Machine.here()
        text = starter.recipe(
            found,
            machine,
            name=name,
            command=f"latentmill run {out}",
            folder=out.parent,
            weights=_installed("efficientnet-lite0", "minilm"),
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        if self.json:
            say_json({"recipe": str(out), **found.as_json()})
            return 0
        screen = console()
        for line in [*findings(found), machine.told(), ""]:
            screen.print(line, markup=False, soft_wrap=True)
        screen.print(
            f"wrote {out}; next:\n  {program()} plan {out}\n  {program()} run {out}",
            markup=False,
            soft_wrap=True,
        )
        return 0


def recipe_name(images: Path) -> str:
    """A recipe's name from a folder's: `~/My Photos.zip` -> `my-photos`."""
    stem = images.expanduser().absolute().name.removesuffix(".zip").lower()
    return re.sub(r"[^a-z0-9_]+", "-", stem).strip("-_0123456789") or "images"


def _installed(*names: str) -> set[str]:
    """Those of the packaged weights that are here."""
    from pipelines.weights import packaged

    found = set()
    for name in names:
        with contextlib.suppress(ValueError):
            packaged(name)
            found.add(name)
    return found


def findings(found: Survey) -> list[str]:
    """What was found, a line each."""
    told = [f"{found.images:,} images in {found.source.path}" + _others(found)]
    if found.sides:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in found.kinds.most_common())
        widths, heights = zip(*found.sides, strict=True)
        told.append(
            f"sizes      {_range(widths)} px wide, {_range(heights)} px high; half have a shorter side of "
            f"{found.short_side(0.5)} px or more; {kinds}"
        )
    labels = found.labels.most_common()
    if labels:
        shown = ", ".join(f"{label} {n:,}" for label, n in labels[:SHOWN_LABELS])
        more = f", and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
        told.append(f"labels     {len(labels)} on {sum(found.labels.values()):,} images: {shown}{more}")
    else:
        told.append(
            "labels     none (a folder for each class, or metadata.csv with a column `label`, gives them)"
        )
    if found.texts:
        told.append(f"captions   on {found.texts:,} images")
    else:
        told.append(
            "captions   none (a .txt beside each image, or metadata.csv with a column `text`, gives them)"
        )
    if found.metadata:
        told.append(f"metadata   {', '.join(found.metadata)}")
    if found.splits:
        told.append(
            "splits     " + ", ".join(f"{split} {n:,}" for split, n in found.splits.most_common()) + ", kept"
        )
    told += _broken(found)
    return told


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _others(found: Survey) -> str:
    return f", and {found.ignored:,} other file{'s' * (found.ignored != 1)}" if found.ignored else ""


def _broken(found: Survey) -> list[str]:
    looked = "" if found.looked + len(found.broken) >= found.images else f" of {found.looked:,} looked at"
    from pipelines.sources.decode import REASONS

    if not found.broken:
        return [f"broken     none{looked}"]
    told = [f"broken     {len(found.broken):,}{looked}; they end as rejects:"]
    told += [
        f"             {name}: {REASONS.get(reason, reason)}" for name, reason in found.broken[:SHOWN_BROKEN]
    ]
    if len(found.broken) > SHOWN_BROKEN:
        told.append(f"             and {len(found.broken) - SHOWN_BROKEN:,} more")
    return told
