"""`latentmill models`: what is registered, how it scored, which version is champion; and the way back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from pipelines.commands.arguments import StorePath, Switch, shown_as
from pipelines.commands.console import console, program, say_json, store

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.registry import Registry
    from pipelines.versions import Version

RECENT = 3
"""Versions of each model that are listed where none is named, beside those with an alias."""
LINES = 6
"""Height of a version's pictures, in lines."""
ALIASES = {"champion": "bold green", "candidate": "cyan"}


@dataclass(frozen=True, kw_only=True)
class Models:
    """List registered models with their scores and aliases; move the champion by hand, or back."""

    name: Annotated[Positional[str | None], shown_as("[NAME]")] = None
    """All versions of this one."""
    promote: Annotated[int | None, shown_as("VERSION")] = None
    """Make this version of NAME champion, whatever the gate would say."""
    rollback: Switch = False
    """Make the champion before this one champion again."""
    because: Annotated[str, shown_as("TEXT", default="(required with --promote)")] = ""
    """Why; it is kept with the version."""
    store: StorePath = None
    """Whose registry, where no MLFLOW_TRACKING_URI is set."""
    json: Switch = False
    """Print JSON."""

    def __call__(self, flags: Sequence[str]) -> int:
        from pipelines.registry import Registry

        registry = Registry.of(store(self.store))
        if self.promote is not None or self.rollback:
            return self._move(registry)
        names = registry.names()
        if self.name is not None:
            if self.name not in names:
                from pipelines.recipe.spelling import near

                raise ValueError(f"no model is registered as {self.name!r}{near(self.name, names)}")
            names = [self.name]
        found = {name: registry.versions(name) for name in names}
        if self.json:
            say_json(
                {"registry": registry.uri, "models": {n: list(map(as_json, v)) for n, v in found.items()}}
            )
            return 0
        screen = console()
        if not found:
            line = (
                f"Nothing is registered at {registry.uri} yet: each training of a run registers its snapshot."
            )
            screen.print(line, markup=False, soft_wrap=True)
        for name, versions in found.items():
            show(screen, registry, name, versions, whole=self.name is not None)
        return 0

    def _move(self, registry: Registry) -> int:
        from pipelines.versions import who

        if self.name is None:
            raise ValueError("say which model: `latentmill models NAME --rollback` or --promote VERSION.")
        if self.rollback and self.promote is not None:
            raise ValueError("--rollback and --promote are two ways: give one.")
        by = who("hand")
        if self.rollback:
            left, champion = registry.roll_back(self.name, by=by, why=self.because or "no reason given")
            told = f"{self.name}: version {champion.number} is champion again, in place of {left.number}"
        else:
            if not self.because.strip():
                raise ValueError("--promote passes by the gate: say why with --because TEXT.")
            assert self.promote is not None
            version = registry.resolve(f"models:/{self.name}/{self.promote}")
            registry.place(version)
            registry.promote(version, by=by, why=self.because.strip())
            told = f"{self.name}: version {version.number} is champion"
        champion = registry.resolve(f"models:/{self.name}@champion")
        if self.json:
            say_json({"registry": registry.uri, "champion": as_json(champion)})
            return 0
        screen = console()
        screen.print(f"{told}.", markup=False, soft_wrap=True)
        line = f"What reads models:/{self.name}@champion runs again with the next `{program()} run`."
        screen.print(line, style="dim", markup=False, soft_wrap=True)
        return 0


def show(screen: Console, registry: Registry, name: str, versions: Sequence[Version], *, whole: bool) -> None:
    """A model with its versions, newest first, and what they draw where the terminal has colours."""
    from rich.text import Text

    listed = [v for n, v in enumerate(versions) if whole or n < RECENT or v.aliases]
    count = f"{len(versions)} version{'s' if len(versions) != 1 else ''}"
    screen.print(Text.assemble((name, "bold"), "  ", (count, "dim")), soft_wrap=True)
    for version in listed:
        line = Text.assemble(f"{version.number:5}  ")
        for alias in version.aliases:
            line.append(alias, ALIASES.get(alias, "magenta"))
            line.append(" ")
        line.append(f"{'' if version.aliases else ' '}{', '.join(facts(version))}")
        screen.print(line, soft_wrap=True)
        for told in history(version) if whole else ():
            screen.print(Text(f"       {told}", "dim"), soft_wrap=True)
        if screen.color_system is not None and (whole or version.aliases):
            _picture(screen, registry, version)
    if len(listed) < len(versions):
        rest = f"       and {len(versions) - len(listed)} more: {program()} models {name}"
        screen.print(Text(rest, "dim"), soft_wrap=True)
    screen.print()


def facts(version: Version) -> list[str]:
    """Age, training and scores, in words."""
    tags = version.tags
    told = [f"{age(time.time() - version.created)} old"]
    if tags.get("images_seen", "").isdigit():
        told.append(f"{int(tags['images_seen']):,} images seen")
    if tags.get("task") == "autoencoder":
        told.append("an autoencoder")
    if "kid" in tags:
        low, high = (float(tags.get(f"kid_{end}", "nan")) for end in ("low", "high"))
        name = tags.get("kid_name", "KID")
        told.append(f"{name} x 1000 {float(tags['kid']):.1f} ({low:.1f} to {high:.1f})")
    if "validation_loss" in tags:
        told.append(f"held-out loss {float(tags['validation_loss']):.4f}")
    if tags.get("gate") == "not promoted":
        told.append("not promoted")
    return told


def history(version: Version) -> list[str]:
    """How the version came to be champion, or not, and how it ceased to be."""
    tags, told = version.tags, []
    if tags.get("promoted_at"):
        before = f" after version {version.before}" if version.before is not None else ""
        told.append(f"champion{before} from {tags['promoted_at']}, by {tags.get('promoted_by', '')}")
        told.append(f"  {tags.get('promoted_why', '')}")
    elif tags.get("gate_why"):
        told.append(f"{tags.get('gate', '')}: {tags['gate_why']}")
    if tags.get("rolled_back_at"):
        by = tags.get("rolled_back_by", "")
        told.append(f"rolled back {tags['rolled_back_at']}, by {by}: {tags.get('rolled_back_why', '')}")
    return [*told, version.url]


def as_json(version: Version) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.number,
        "aliases": list(version.aliases),
        "url": version.url,
        "digest": version.digest,
        "created": version.created,
        "run": version.run,
        "champion_before": version.before,
        "tags": dict(version.tags),
    }


def age(seconds: float) -> str:
    """90 s, 12 min, 5 h, 3 days."""
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{max(seconds, 0) / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _picture(screen: Console, registry: Registry, version: Version) -> None:
    from rich.padding import Padding

    from pipelines import terminal

    png = registry.picture(version)
    if png is not None:
        screen.print(Padding(terminal.row([png], columns=screen.width - 8, lines=LINES), (0, 0, 0, 7)))
