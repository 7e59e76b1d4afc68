"""Runs a shard stage here and now, as a runner would, to a finished dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.storage import Storage
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.shards import write_shard
from pipelines.stage import ShardStage


def made(stage: ShardStage, inputs: dict[str, Any], folder: Path) -> Dataset:
    storage = Storage.at(folder)
    make, infos = stage.open(inputs), []
    for shard in stage.plan(inputs):
        rows = stage.rows(inputs, shard)
        samples = make(shard, rows)
        infos.append(write_shard(storage, shard.name, zip(rows, samples, strict=True), split=shard.split))
    draft = describe(infos)
    write_manifest(storage, describe(infos, **stage.finish(inputs, Dataset(storage, draft))))
    return Dataset.open(storage)


def column(dataset: Dataset, name: str) -> dict[str, bytes]:
    """Key -> bytes, over all shards."""
    records = (r for shard in dataset.shards for r in dataset.read(shard.name, columns=(name,)))
    return {record.key: record.members[name] for record in records}
