"""What a user points at: a dataset, finished or not, a snapshot or a report, and what it was made from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import Storage
from pipelines.dataset import Dataset, describe, read_manifest
from pipelines.inspection.reach import place_of
from pipelines.runner.artifacts import finished
from pipelines.shards import ShardError, ShardIndex, read_index
from pipelines.view import View

Kind = str


@dataclass(frozen=True, kw_only=True)
class Thing:
    reference: str
    """As it was asked for."""
    storage: Storage
    manifest: Mapping[str, Any]
    """Of what is not finished, what its committed shards say."""
    finished: bool = True
    home: Storage | None = None
    """Folder of the recipe's runs, for what is drawn of it."""
    stage: str = ""
    """The recipe's name for it."""
    store: Storage | None = None

    @property
    def kind(self) -> Kind:
        return str(self.manifest.get("kind", "dataset"))

    @property
    def dataset(self) -> Dataset:
        """`ValueError` for what is none."""
        if self.kind != "dataset":
            raise ValueError(f"{self.reference} is a {self.kind}, not a dataset.")
        return Dataset.open(self.storage) if self.finished else Dataset(self.storage, self.manifest)


def find(reference: str, store: str | None) -> Thing:
    """`ValueError` where there is nothing at all."""
    from pipelines.commands.console import store as open_store
    from pipelines.commands.reference import RECIPE_STAGE, resolve

    match = RECIPE_STAGE.fullmatch(reference)
    if match is None:
        return at(reference, Storage.at(reference), store=open_store(store))
    from pipelines import config
    from pipelines.runner.plan import plan

    place, recipe = open_store(store), config.load(match["recipe"])
    home, stage = place.folder("runs").folder(recipe.name), match["stage"]
    folder = None
    if stage in recipe.stages:
        folder = plan(recipe, place, until=stage, lenient=True)[stage].folder
    if folder is None or not (finished(folder) or any(name.endswith(".parquet") for name in folder.list())):
        folder = Storage.at(resolve(reference, store))  # says what is wrong
    return at(reference, folder, home=home, stage=stage, store=place)


def at(reference: str, storage: Storage, **fields: Any) -> Thing:
    if finished(storage):
        return Thing(reference=reference, storage=storage, manifest=read_manifest(storage), **fields)
    infos = []
    for name in storage.list():
        if name.endswith(".parquet") and "/" not in name:
            with contextlib.suppress(ShardError):
                infos.append(read_index(storage, name.removesuffix(".parquet")).info)
    if not infos:
        raise ValueError(
            f"There is no dataset, snapshot or report at {reference}: give a folder or URL, or RECIPE:STAGE."
        )
    manifest = describe(infos)
    return Thing(reference=reference, storage=storage, manifest=manifest, finished=False, **fields)


def indices(dataset: Dataset, split: str | None = None) -> Iterator[ShardIndex]:
    """Shard by shard, none of them kept: memory is that of one shard."""
    for info in dataset.shards:
        if split is None or info.split == split:
            if isinstance(dataset, View):
                one = View(dataset.storage, {**dataset.manifest, "shards": [info.__dict__]})
                yield one.index(info.name)
            else:
                yield read_index(dataset.storage, info.name, info)


@dataclass(frozen=True)
class Node:
    """One step of a lineage."""

    role: str
    """What it was to what was made from it: the name of the field."""
    url: str
    manifest: Mapping[str, Any]
    """Empty where it is not there any more."""
    inputs: tuple[Node, ...] = ()
    again: bool = False
    """Told above, with its own inputs."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest of what was made from it says of it."""


def lineage(thing: Thing) -> Node:
    """Up through the manifests to the sources."""
    told: set[str] = set()

    def walk(role: str, storage: Storage, manifest: Mapping[str, Any], said: Mapping[str, Any]) -> Node:
        mark = str(manifest.get("sha256") or storage.url)
        if mark in told and manifest:
            return Node(role, storage.url, manifest, again=True, said=said)
        told.add(mark)
        above = [
            (name, entry) for name, entry in (manifest.get("inputs") or {}).items() if isinstance(entry, dict)
        ]
        inputs = tuple(walk(name, *_there(thing, entry), entry) for name, entry in above)
        return Node(role, storage.url, manifest, inputs, said=said)

    return walk("", thing.storage, thing.manifest, {})


def _there(thing: Thing, entry: Mapping[str, Any]) -> tuple[Storage, Mapping[str, Any]]:
    """An input's folder, in this store where the store has moved; no manifest where it is gone."""
    places = [Storage.at(str(entry["url"]))] if entry.get("url") else []
    if thing.store is not None and (place := place_of(str(entry.get("url") or ""))):
        stage, _, name = place.partition("/")
        places.append(thing.store.folder(stage).folder(name))
    for storage in places:
        with contextlib.suppress(ValueError, OSError):
            return storage, read_manifest(storage)
    return places[0] if places else thing.storage, {}


def ancestors(thing: Thing) -> list[Dataset]:
    """Datasets of its line that it was made from, the nearest first: they know what its rows come from."""
    found: list[Dataset] = []
    names = {shard["name"] for shard in thing.manifest.get("shards", [])}

    def walk(node: Node) -> None:
        for above in node.inputs:
            shards = {shard["name"] for shard in above.manifest.get("shards", [])}
            if above.manifest.get("kind") == "dataset" and names <= shards:
                with contextlib.suppress(ValueError, OSError):
                    found.append(Dataset.open(Storage.at(above.url)))
        for above in node.inputs:
            walk(above)

    if "view" not in thing.manifest:
        walk(lineage(thing))
    return found


class Sources:
    """Where samples come from, by name in their source: told by their own row, or by an ancestor's."""

    def __init__(self, thing: Thing) -> None:
        self._ancestors = ancestors(thing) if thing.finished else []

    def of(self, index: ShardIndex, rows: list[int]) -> list[str]:
        """One name a row; the key where nothing is known. Only the shard's own rows are read."""
        names = [str(index.meta[n].get("file_name") or "") for n in rows]
        for dataset in self._ancestors:
            if all(names):
                break
            with contextlib.suppress(ShardError, ValueError):
                theirs = next(iter(indices(_only(dataset, index.info.name))))
                places = {key: n for n, key in enumerate(theirs.keys)}
                for m, n in enumerate(rows):
                    row = places.get(index.keys[n])
                    if not names[m] and row is not None:
                        names[m] = str(theirs.meta[row].get("file_name") or "")
        return [name or index.keys[n] for name, n in zip(names, rows, strict=True)]


def _only(dataset: Dataset, shard: str) -> Dataset:
    info = dataset.info(shard)
    return type(dataset)(dataset.storage, {**dataset.manifest, "shards": [info.__dict__]})
