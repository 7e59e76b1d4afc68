"""WebDataset tars with every column joined: of each split a folder, numbered without a gap."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from cluster.storage import Storage
from pipelines.dataset import describe, write_manifest
from pipelines.export.joined import Joined, Line
from pipelines.shards import ShardInfo, canonical, write_shard
from pipelines.stage import Row, Sample


def write(line: Line, out: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Split -> samples, and split -> the pattern of its tars. Each split's folder is a dataset of its own."""
    infos: dict[str, list[ShardInfo]] = {}
    for shard in line.dataset.shards:
        samples = line.samples(shard)
        first = next(samples, None)
        if first is None:  # a tar that holds nothing makes some readers stop
            continue
        known = infos.setdefault(shard.split, [])
        storage = Storage.at(out / shard.split)
        name = f"{len(known):05d}"
        known.append(write_shard(storage, name, _pairs(itertools.chain([first], samples)), split=shard.split))
    for split, known in infos.items():
        inputs = {"dataset": {"digest": line.dataset.digest(), "url": line.dataset.storage.url}}
        manifest = describe(known, stage="export", classes=line.dataset.classes, inputs=inputs)
        write_manifest(Storage.at(out / split), manifest)
    counts = {split: sum(info.samples for info in known) for split, known in infos.items()}
    return counts, {split: _pattern(out / split, len(known)) for split, known in infos.items()}


def _pairs(samples: Iterator[Joined]) -> Iterator[tuple[Row, Sample]]:
    for sample in samples:
        members = {sample.suffix: sample.image, "json": canonical(sample.facts), **sample.columns}
        if sample.text is not None:
            members["txt"] = sample.text.encode()
        if sample.class_id is not None:
            members["cls"] = str(sample.class_id).encode()
        yield Row(key=sample.key), Sample(key=sample.key, members=members)


def _pattern(folder: Path, count: int) -> str:
    return f"{folder}/00000.tar" if count == 1 else f"{folder}/{{00000..{count - 1:05d}}}.tar"
