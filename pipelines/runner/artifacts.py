"""Finished outputs: folders with a manifest, opened as what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cluster.storage import Storage
from pipelines.dataset import MANIFEST, Dataset, read_manifest
from pipelines.shards import canonical
from pipelines.stage import Kind, Tell


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an input lies; small enough to send to any worker, which opens it there."""

    kind: Kind
    url: str
    reference: str
    """As the recipe says it."""
    version: int | None = None
    """Of a registered model: what the reference stood for when the run was planned."""

    def open(self) -> Any:
        """A `Dataset`, a `SnapshotFolder` or a `Report`.

        Raises:
            ValueError: nothing finished lies there, or something else.
        """
        return open_artifact(self.kind, Storage.at(self.url))


def opened(stage: Any, sources: Mapping[str, Source | None]) -> dict[str, Any]:
    """A stage's inputs by field: a tuple where the field can name several, None where it names none."""
    inputs: dict[str, Any] = {name: () for name in stage.inputs() if isinstance(getattr(stage, name), tuple)}
    for name, source in sources.items():
        field, several, _ = name.partition(".")
        artifact = source.open() if source else None
        inputs[field] = (*inputs[field], artifact) if several else artifact
    return inputs


class Report:
    """An evaluation's folder."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.manifest: dict[str, Any] = read_manifest(storage)

    def digest(self) -> str:
        return hashlib.sha256(canonical(self.manifest.get("report", {}))).hexdigest()


def open_artifact(kind: Kind, storage: Storage) -> Any:
    if kind == "dataset":
        return Dataset.open(storage)
    if kind == "snapshot":
        from pipelines.models import SnapshotFolder

        return SnapshotFolder.open(storage)
    return Report(storage)


def finished(storage: Storage) -> bool:
    return storage.exists(MANIFEST)


def locate(
    reference: str,
    kind: Kind,
    *,
    store: Storage,
    part: Literal["autoencoder", "denoiser", "pipeline"] = "autoencoder",
    fetch: Tell | None = None,
    ask: bool = False,
) -> Source:
    """A dataset or snapshot from outside the recipe: a path, a URL, or `models:/name@alias`; of a snapshot,
    also foreign weights, which become one of this store (`pipelines.pretrained`).

    Args:
        part: of foreign weights, where they are a whole pipeline.
        fetch: told how far it is while foreign weights are fetched; without it none are.
        ask: whether the hub may be asked which commit a model has now, to say it where it is not pinned.

    Raises:
        TooMany: foreign weights are not in the store yet.
        ValueError: nothing finished lies there, or the registry does not know it.
    """
    if reference.startswith("models:/"):
        from pipelines.registry import Registry

        registry = Registry.of(store)
        version = registry.resolve(reference)
        url = registry.place(version).url
        return Source(kind=kind, url=url, reference=reference, version=version.number)
    storage = None if reference.startswith("hub:") else Storage.at(reference)
    if storage is None or not finished(storage):
        from pipelines.pretrained.adoption import adopted

        storage = adopted(reference, store, part=part, fetch=fetch, ask=ask) if kind == "snapshot" else None
    if storage is None:
        raise ValueError(f"There is no finished {kind} at {reference}.")
    return Source(kind=kind, url=storage.url, reference=reference)
