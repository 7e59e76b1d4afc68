"""From images to be measured to jobs for workers, and back from their answers: the same in any order."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.dataset import join
from pipelines.scoring.measure import Job, Measure, Place
from pipelines.stage import KEEP

if TYPE_CHECKING:
    import numpy as np

    from pipelines.dataset import Dataset
    from pipelines.stage import Session

CHUNK = 4
"""Micro-batches of a job: few, so that workers end together."""
FEWEST = 8
"""Images that a set needs to be judged."""


def places(
    dataset: Dataset,
    splits: Sequence[str] | None,
    name: str,
    *,
    seed: int,
    most: int | None = None,
    keep: Dataset | None = None,
) -> list[Place]:
    """At most `most` images (all if None) of the splits, in an order that depends on seed, name and keys; of
    those alone that have `keep`'s column, where it is given."""
    if keep is not None:
        join({"images": dataset, KEEP: keep})
    found: list[tuple[bytes, Place]] = []
    for shard in dataset.shards:
        if splits is not None and shard.split not in splits:
            continue
        index = dataset.index(shard.name)
        for n, key in enumerate(index.keys):
            kept = keep is None or keep.index(shard.name).member(n, KEEP)
            if index.reasons[n] is None and index.member(n, "image") and kept:
                rank = hashlib.sha256(f"{seed}/{name}/{key}".encode()).digest()
                found.append((rank, (shard.name, n)))
    return [place for _, place in sorted(found)[:most]]


def ranked(entries: Sequence[Place], *, seed: int, most: int | None = None) -> list[Place]:
    """Places in an order that depends on seed and place alone."""
    return sorted(entries, key=lambda place: hashlib.sha256(f"{seed}/{place}".encode()).digest())[:most]


def cut(count: int, micro_batch: int) -> list[slice]:
    """The runs of `CHUNK` micro-batches that `count` items fall into."""
    size = CHUNK * micro_batch
    return [slice(n, min(n + size, count)) for n in range(0, count, size)]


def measured(
    session: Session,
    measure: Measure,
    jobs: Mapping[str, Sequence[Job]],
    *,
    before: int = 0,
    after: int = 0,
) -> dict[str, np.ndarray]:
    """Each kind's answers in the order of its jobs; progress is told in images.

    Args:
        before: images that were measured before, by another call.
        after: images that will be.
    """
    import numpy as np

    named = [(name, job) for name, of in jobs.items() for job in of]
    flat = [dataclasses.replace(job, number=n) for n, (_, job) in enumerate(named)]
    total, done = before + sum(len(job) for job in flat) + after, before
    answers: dict[int, np.ndarray] = {}
    for number, answer in session.map(measure, flat):
        answers[number] = answer
        done += len(flat[number])
        session.event({"kind": "progress", "done": done, "total": total, "unit": "images"})
    found: dict[str, list[np.ndarray]] = {}
    for number, (name, _) in enumerate(named):
        found.setdefault(name, []).append(answers[number])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def opened(inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """URLs of the datasets that are set: a worker opens them there."""
    return {name: inputs[name].storage.url for name in names if inputs.get(name) is not None}
