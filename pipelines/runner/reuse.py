"""Samples that earlier fingerprints of a stage committed: found by work key, copied instead of made again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import lru_cache

from cluster.storage import Storage
from pipelines.dataset import Dataset
from pipelines.shards import ShardError, read_index
from pipelines.stage import Row, Sample, ShardStage

NOTE = "stage.json"
"""In an output folder from its start: what the stage's samples have in common, told before any is there."""


class Earlier:
    """Looks through the shards of folders that did the same work, as far as it has to."""

    def __init__(self, stage: ShardStage, folders: Sequence[Storage]) -> None:
        """`folders`: see `siblings`."""
        self._stage = stage
        self._unread: dict[str, list[Storage]] = {}
        for folder in folders:
            for name in folder.list():
                if name.endswith(".parquet") and "/" not in name:
                    self._unread.setdefault(name.removesuffix(".parquet"), []).append(folder)
        self._where: dict[str, tuple[Storage, str, int]] = {}
        self._dataset = lru_cache(maxsize=8)(_one_shard)

    def sample(self, row: Row, work: str, shard: str) -> Sample | None:
        """The sample with this work key under `row`'s key, or None. `shard` is where to look first."""
        if shard in self._unread:
            self._read(shard)
        while work not in self._where and self._unread:
            self._read(next(iter(self._unread)))
        if work not in self._where:
            return None
        folder, name, n = self._where[work]
        try:
            dataset = self._dataset(folder, name)
            index = dataset.index(name)
            suffixes = [suffix for suffix, spans in index.members.items() if spans[n]]
            members = {suffix: dataset.read_member(name, n, suffix) for suffix in suffixes}
            full = self._stage.shared(members)
            if index.shared and not full:
                return None
            shared = {part: dataset.read_shared(name, part) for part in full}
        except (ShardError, KeyError, FileNotFoundError):
            return None  # damaged or removed meanwhile: it is made again
        return Sample(key=row.key, members=members, meta=index.meta[n], shared=shared)

    def _read(self, shard: str) -> None:
        for folder in self._unread.pop(shard):
            try:
                index = read_index(folder, shard)
            except ShardError:
                continue
            for n, work in enumerate(index.works):
                if work and index.reasons[n] is None:
                    self._where.setdefault(work, (folder, shard, n))


def announce(folder: Storage, work: str) -> None:
    """Notes in an output folder what its samples have in common, for `siblings` to see."""
    folder.put_if_absent(NOTE, json.dumps({"work": work}).encode())


def siblings(stages: Storage, own: str, work: str) -> list[Storage]:
    """Other fingerprints' folders of a stage whose samples have the same work in common, finished or not."""
    found = []
    for name in stages.folders():
        folder = stages.folder(name)
        try:
            same = name != own and json.loads(folder.read(NOTE))["work"] == work
        except (FileNotFoundError, ValueError, KeyError):
            continue
        if same:
            found.append(folder)
    return found


def _one_shard(folder: Storage, name: str) -> Dataset:
    info = read_index(folder, name).info
    return Dataset(folder, {"shards": [dataclasses.asdict(info)]})
