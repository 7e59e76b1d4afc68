"""`latentmill init`: look at images, write a recipe for them and for this machine."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from pipelines.commands.arguments import Switch, shown_as
from pipelines.commands.console import console, program, say_json

if TYPE_CHECKING:
    from pipelines.recipe.survey import Survey

Kind = Literal["folder", "zip", "glob", "webdataset", "img2dataset", "table", "huggingface", "idx"]
SHOWN_BROKEN = 5
SHOWN_LABELS = 6
SHOWN_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Init:
    """Look at a pile of images and write a commented recipe that `run` takes as it is.

    A folder or zip archive of images, WebDataset tars, what img2dataset wrote, a Parquet, CSV or JSONL table,
    a HuggingFace dataset's folder, IDX files, a quoted pattern such as 'photos/**/*.jpg', or any of these
    under an s3, gs or az URL. What is large is read in part, drawn at random.
    """

    images: Annotated[Positional[tuple[str, ...]], shown_as("PLACE")]
    """A path, a pattern or a URL."""
    kind: Annotated[Kind | None, shown_as("KIND", default="(found out)")] = None
    """What lies there: folder, zip, glob, webdataset, img2dataset, table, huggingface or idx."""
    image: Annotated[str | None, shown_as("COLUMN", default="(found out)")] = None
    """A table's column of images; of tars, the ending of the member that is the image."""
    text: Annotated[str | None, shown_as("COLUMN", default="(found out)")] = None
    """A table's column of captions; of tars, the field of the .json."""
    label: Annotated[str | None, shown_as("COLUMN", default="(found out)")] = None
    """A table's column of classes; of tars, the field of the .json."""
    below: Annotated[Path | None, shown_as("DIR", default="(the table's folder)")] = None
    """The folder of the files that a table names."""
    out: Annotated[Path | None, shown_as("RECIPE.YAML")] = None
    """The recipe to write, if not one called after PLACE in the working folder."""
    force: Switch = False
    """Write over a recipe that is there."""
    seconds: float = 20.0
    """Time to look in; where that is too little, as much as it allows is looked at."""
    json: Switch = False
    """Print the findings as JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        from pipelines.recipe import starter
        from pipelines.recipe.machine import Machine
        from pipelines.recipe.recognition import recognise
        from pipelines.recipe.survey import survey

        if not self.images:
            raise ValueError("init needs a place, as in `latentmill init ~/photos`.")
        if self.images[1:]:
            raise ValueError(
                f"init takes one place, and {len(self.images):,} are given: a pattern stands in quotes, "
                "as in `latentmill init 'photos/*.jpg'`."
            )
        name = recipe_name(self.images[0])
        out = self.out or Path(f"{name}.yaml")
        if out.exists() and not self.force:
            raise ValueError(f"{out} is there already; --out names another file, --force writes over it.")
        fields = {"image": self.image, "text": self.text, "label": self.label, "images": self.below}
        seen = recognise(self.images[0], kind=self.kind, fields=fields)
        found = survey(seen.source, seconds=self.seconds, notes=seen.notes)
        machine = Machine.here()
        text = starter.recipe(
            found,
            machine,
            name=name,
            command=f"latentmill run {out}",
            folder=out.parent,
            weights=_installed("efficientnet-lite0", "minilm", "open-nsfw"),
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


def recipe_name(images: str | Path) -> str:
    """A recipe's name from a place's: `~/My Photos.zip` -> `my-photos`, `shards/{00..12}.tar` -> `shards`."""
    parts = [part for part in Path(images).expanduser().absolute().parts if not _WILD.search(part)]
    stem = _ENDINGS.sub("", parts[-1].lower()) if parts else ""
    return re.sub(r"[^a-z0-9_]+", "-", stem).strip("-_0123456789") or "images"


_WILD = re.compile(r"[*?\[{]")
_ENDINGS = re.compile(r"\.(zip|tar|tar\.gz|tgz|tar\.zst|tzst|parquet|csv|tsv|jsonl|ndjson)$")


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
    from pipelines.recipe.survey import place

    images = f"{found.images:,} images" if found.exact else f"about {rounded(found.images):,} images"
    told = [f"{images} in {place(found.source)}{_others(found)}", f"source     {_source(found)}"]
    if not found.exact:
        told.append(f"looked at  {found.read:,} of them, drawn at random; {found.looked:,} were decoded")
    if found.sides:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in found.kinds.most_common())
        widths, heights = zip(*found.sides, strict=True)
        told.append(
            f"sizes      {_range(widths)} px wide, {_range(heights)} px high; half have a shorter side of "
            f"{found.short_side(0.5)} px or more; {kinds}"
        )
        if found.square < 1:
            told.append(f"shapes     {100 * found.square:.0f} % are within a tenth of square{_shapes(found)}")
    told += [_labels(found), _captions(found)]
    if found.columns is None and found.metadata:
        told.append(f"metadata   {', '.join(found.metadata)}")
    if found.splits:
        splits = (f"{split} {_count(found, n)}" for split, n in found.splits.most_common())
        told.append(f"splits     {', '.join(splits)}, kept")
    told += _broken(found)
    return told + [f"note       {note}" for note in found.notes]


def rounded(count: int) -> int:
    """To two digits: what is reckoned is not known better."""
    return round(count, 2 - len(str(count))) if count >= 100 else count


def _count(found: Survey, count: int) -> str:
    return f"{count if found.exact else rounded(count):,}"


def _source(found: Survey) -> str:
    """Which kind it was taken for, and which columns."""
    source, columns = found.source, found.columns
    told = getattr(source, "kind", "")
    if columns is None:
        return told
    roles = {"image": columns.image, "text": columns.text, "label": columns.label, "split": columns.split}
    told += ": " + ", ".join(f"{role} from {name!r}" for role, name in roles.items() if name)
    if columns.others:
        more = f" and {len(columns.others) - SHOWN_COLUMNS:,} more" * (len(columns.others) > SHOWN_COLUMNS)
        told += f"; besides {', '.join(columns.others[:SHOWN_COLUMNS])}{more}"
    return told


def _shapes(found: Survey) -> str:
    from pipelines.recipe.survey import SQUARE

    wide = sum(width > SQUARE * height for width, height in found.sides)
    tall = sum(height > SQUARE * width for width, height in found.sides)
    shares = [(100 * n / len(found.sides), what) for n, what in ((wide, "wide"), (tall, "tall")) if n]
    return "".join(f", {share:.0f} % {what}" for share, what in shares)


def _labels(found: Survey) -> str:
    labels = found.labels.most_common()
    if not labels:
        return f"labels     none ({_way(found, 'label', 'a folder for each class')})"
    shown = ", ".join(f"{label} {_count(found, n)}" for label, n in labels[:SHOWN_LABELS])
    more = f", and {len(labels) - SHOWN_LABELS:,} more" if len(labels) > SHOWN_LABELS else ""
    some = "" if found.exact else " or more"
    on = _count(found, sum(found.labels.values()))
    told = f"labels     {len(labels):,}{some} on {on} images: {shown}{more}"
    return told if found.classes else f"{told}; too many to be classes"


def _captions(found: Survey) -> str:
    if found.texts:
        return f"captions   on {_count(found, found.texts)} images"
    return f"captions   none ({_way(found, 'text', 'a .txt beside each image')})"


def _way(found: Survey, role: str, beside: str) -> str:
    """How images of this source come by a text or a label."""
    kind = getattr(found.source, "kind", "")
    if found.columns is not None:
        return f"--{role} COLUMN says which column gives them"
    if kind == "webdataset":
        return f"--{role} FIELD says which field of the .json gives them"
    if kind in ("img2dataset", "idx"):
        return f"a column `{role}` gives them"
    return f"{beside}, or metadata.csv with a column `{role}`, gives them"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _others(found: Survey) -> str:
    return f", and {found.ignored:,} other file{'s' * (found.ignored != 1)}" if found.ignored else ""


def _broken(found: Survey) -> list[str]:
    """A few are named; of many the reasons are."""
    from pipelines.sources.reject import REASONS

    every = found.exact and found.looked + len(found.broken) >= found.images
    looked = "" if every else f" of {found.looked + len(found.broken):,} looked at"
    broken = found.broken
    if not broken:
        return [f"broken     none{looked}"]
    told = [f"broken     {len(broken):,}{looked}; they end as rejects:"]
    if len(broken) <= SHOWN_BROKEN:
        return told + [f"             {name}: {REASONS.get(reason, reason)}" for name, reason in broken]
    reasons = Counter(reason for _, reason in broken).most_common()
    for reason, count in reasons[:SHOWN_BROKEN]:
        example = next(name for name, why in broken if why == reason)
        told.append(f"             {count:,} {REASONS.get(reason, reason)}, as {example}")
    return told + [f"             and {len(reasons) - SHOWN_BROKEN:,} more reasons"] * (
        len(reasons) > SHOWN_BROKEN
    )
