"""Which folders of a store something uses: the last run of a recipe, a run in progress, a model's alias.

From each of those the manifests lead on to the inputs, to what a view points into, to the dataset that a
retry names. What is found by no such way may be removed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import Storage
from pipelines.dataset import MANIFEST
from pipelines.pretrained.adoption import FOLDER as PRETRAINED
from pipelines.runner.fingerprint import LENGTH, Identity
from pipelines.runner.uses import live, read_uses

FINGERPRINT = re.compile(rf"[0-9a-f]{{{LENGTH}}}")
PLACE = re.compile(rf"([a-z_]+/[0-9a-f]{{{LENGTH}}})(?![0-9a-f])")
"""A folder of a store, as a URL or a recipe names it, wherever the store lay then."""
CHECKPOINTS = "checkpoints"


@dataclass
class Reach:
    """What is used."""

    folders: dict[str, str] = field(default_factory=dict)
    """"ingest/FINGERPRINT" or "checkpoints/LINEAGE" -> what uses it, in words."""
    versions: dict[str, str] = field(default_factory=dict)
    """Folders of registered models that no alias points at -> their names: said of what is removed."""
    unsure: list[str] = field(default_factory=list)
    """Trainings that are used and whose checkpoints cannot be told: then none are removed."""

    def __contains__(self, folder: str) -> bool:
        return folder in self.folders


def reach(store: Storage, *, recipes: Iterable[Any] = (), registry: bool = True) -> Reach:
    """Everything in use.

    Args:
        recipes: whose outputs are kept beside those of the recipes that were run in this store.
        registry: whether the registry is asked for its aliases.

    Raises:
        ValueError: the registry cannot be asked, or a recipe is wrong.
    """
    found = Reach()
    for place, by in _roots(store, recipes):
        found.folders.setdefault(place, by)
    if registry:
        _aliases(store, found)
    _follow(store, found)
    return found


def in_use_now(store: Storage) -> dict[str, str]:
    """What runs say that they use: little to read, so that it can be asked before each deletion."""
    runs = store.folder("runs")
    return {place: by for recipe in runs.folders() for place, by in _said(runs.folder(recipe), recipe)}


def in_progress(store: Storage) -> bool:
    """Whether any run goes on."""
    runs = store.folder("runs")
    return any(run.alive for recipe in runs.folders() for run in live(runs.folder(recipe)).values())


def place_of(url: str) -> str | None:
    """ "stage/FINGERPRINT" of a URL or path that ends so."""
    match = PLACE.search(url.rstrip("/"))
    return match[1] if match and url.rstrip("/").endswith(match[1]) else None


def _roots(store: Storage, recipes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    from pipelines.runner.plan import plan
    from pipelines.runner.uses import used

    runs = store.folder("runs")
    for recipe in runs.folders():
        folder = runs.folder(recipe)
        said = [*_said(folder, recipe)]
        yield from said or _before(store, folder, recipe)
        if folder.exists("recipe.yaml"):
            text = folder.read("recipe.yaml").decode(errors="replace")
            for match in PLACE.finditer(text):
                yield match[1], f"named in the recipe {recipe}"
    for recipe in recipes:
        planned = plan(recipe, store, lenient=True)
        for stage in planned.stages:
            if stage.identity is None and stage.state != "after":
                raise ValueError(f"What {recipe.name} uses cannot be told; {stage.name}: {stage.reason}")
        for places in used(planned).values():
            for url in places:
                if place := place_of(url):
                    yield place, f"recipe {recipe.name}"


def _said(folder: Storage, recipe: str) -> Iterator[tuple[str, str]]:
    """From a run's folder: what runs in progress and the last run told of themselves."""
    told = [(run.uses, "in progress" if run.alive else "last") for run in live(folder).values()]
    for uses, which in [*told, (read_uses(folder), "last")]:
        for url in (url for places in uses.values() for url in places):
            if place := place_of(url):
                yield place, f"{which} run of {recipe}" if which == "last" else f"run of {recipe} {which}"


def _before(store: Storage, folder: Storage, recipe: str) -> Iterator[tuple[str, str]]:
    """Of a run before runs told what they use: from its journal."""
    names: set[str] = set()
    with contextlib.suppress(FileNotFoundError, ValueError):
        last = json.loads(folder.read("last.json"))
        names |= {str(stage["fingerprint"]) for stage in last.values()}
    with contextlib.suppress(FileNotFoundError):
        for line in folder.read("events.jsonl").decode(errors="replace").splitlines():
            if '"plan"' in line or '"stage_start"' in line:
                names |= set(FINGERPRINT.findall(line))
    for stage in store.folders():
        if names:
            for name in names & set(store.folder(stage).folders()):
                yield f"{stage}/{name}", f"last run of {recipe}"


def _aliases(store: Storage, found: Reach) -> None:
    from pipelines.registry import Registry

    registry = Registry.of(store)
    for name in registry.names():
        versions = registry.versions(name)
        kept = {v.number: f"{name}@{v.aliases[0]}" for v in versions if v.aliases}
        for version in versions:  # so that the champion can be rolled back
            if version.aliases and version.before is not None:
                kept.setdefault(version.before, f"the one before {name}@{version.aliases[0]}")
        for version in versions:
            place = place_of(version.url) or place_of(version.tags.get("folder", ""))
            if place and version.number in kept:
                found.folders.setdefault(place, kept[version.number])
            elif place:
                found.versions[place] = f"version {version.number} of {name}"


def _follow(store: Storage, found: Reach) -> None:
    """From what is used to what that was made from, and to the checkpoints of trainings."""
    queue = list(found.folders)
    while queue:
        place = queue.pop()
        stage, _, name = place.partition("/")
        if stage == CHECKPOINTS:
            continue
        manifest = manifest_of(store.folder(stage).folder(name))
        for other in _named(store, place, manifest):
            if other not in found.folders:
                found.folders[other] = f"{stage} {name[:8]}, which was made from it"
                queue.append(other)
        if manifest.get("kind") == "snapshot" or manifest.get("view"):
            lineage = lineage_of(manifest)
            if lineage is not None:
                found.folders.setdefault(f"{CHECKPOINTS}/{lineage}", found.folders[place])
            elif manifest.get("kind") == "snapshot" and stage != PRETRAINED:
                found.unsure.append(place)


def manifest_of(folder: Storage) -> Mapping[str, Any]:
    """Empty for what is not finished, or damaged: then it leads nowhere."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        manifest = json.loads(folder.read(MANIFEST))
        if isinstance(manifest, dict):
            return manifest
    return {}


def _named(store: Storage, place: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Folders of the store that a manifest names."""
    for entry in (manifest.get("inputs") or {}).values():
        if not isinstance(entry, Mapping):
            continue
        if entry.get("stage") and FINGERPRINT.fullmatch(str(entry.get("fingerprint"))):
            yield f"{entry['stage']}/{entry['fingerprint']}"
        if other := place_of(str(entry.get("url") or "")):
            yield other
    for source in ((manifest.get("view") or {}).get("sources") or {}).values():
        if other := place_of(str(source.get("where") or "")):
            yield other
    retry = (manifest.get("meaning") or {}).get("retry")
    if retry:
        yield f"{place.partition('/')[0]}/{retry}"


def lineage_of(manifest: Mapping[str, Any]) -> str | None:
    """Name of the checkpoints' folder of a finished training; None where it cannot be told."""
    from pipelines.stage import Stage
    from pipelines.stages import load

    try:
        kind = load(str(manifest["stage"]))
        if not issubclass(kind, Stage):
            return None
        inputs = {name: entry["digest"] for name, entry in manifest["inputs"].items()}
        identity = Identity(
            stage=manifest["stage"],
            version=manifest["version"],
            meaning=manifest["meaning"],
            inputs=inputs,
            external=manifest["external"],
        )
        # an input that is not set stands in the fingerprint, and not in the manifest
        for absent in _subsets([n for n in kind.inputs() if not any(i.split(".")[0] == n for i in inputs)]):
            with_none = Identity(**{**identity.__dict__, "inputs": {**inputs, **dict.fromkeys(absent)}})
            if with_none.fingerprint == manifest["fingerprint"]:
                return with_none.lineage(kind.length)
    except (ValueError, KeyError, AttributeError, ImportError, TypeError):
        pass
    return None


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    """The largest first: fields that came later are left out while they are not set."""
    from itertools import combinations

    for count in range(len(names), -1, -1):
        yield from combinations(names, count)
