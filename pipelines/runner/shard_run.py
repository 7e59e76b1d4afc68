"""Runs a `ShardStage`: what is committed is kept, what an earlier run made is copied, the rest is made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.mapping import Executor
from cluster.resources import settle
from cluster.storage import Storage
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.runner.artifacts import Source, opened
from pipelines.runner.fingerprint import work_key, work_of
from pipelines.runner.plan import PlannedStage
from pipelines.runner.record import header
from pipelines.runner.reuse import Earlier, announce, siblings
from pipelines.shards import ShardError, ShardIndex, ShardInfo, read_index, write_shard
from pipelines.stage import DROPPED, Row, Sample, ShardPlan, ShardStage

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a worker tells of a shard."""

    info: ShardInfo
    failed: int
    """Samples that this stage rejected; those that an input had rejected are not among them."""
    copied: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ShardMaker:
    """Opens a stage in a worker, and nothing heavy before a sample must be made."""

    stage: ShardStage
    folder: Storage
    sources: Mapping[str, Source | None]
    work: str
    earlier: Sequence[Storage]

    def __call__(self) -> Callable[[ShardPlan], Made]:
        inputs = opened(self.stage, self.sources)
        earlier = Earlier(self.stage, self.earlier)
        making: list[Callable[[ShardPlan, Sequence[Row]], Any]] = []

        def make(shard: ShardPlan) -> Made:
            start = time.monotonic()
            if self.folder.exists(f"{shard.name}.parquet"):  # another driver was faster
                index = read_index(self.folder, shard.name)
                return Made(info=index.info, failed=own_rejects(self.stage, index), copied=0, seconds=0.0)
            rows = self.stage.rows(inputs, shard)
            known: dict[str, Sample] = {}
            todo = []
            for row in rows:
                if row.reject:
                    known[row.key] = Sample(key=row.key, reject=row.reject, meta=row.meta)
                    continue
                found = earlier.sample(row, work_key(self.work, row), shard.name) if self.earlier else None
                if found is None:
                    todo.append(row)
                else:
                    known[row.key] = found
            copied = sum(sample.reject is None for sample in known.values())
            if todo and not making:
                making.append(self.stage.open(inputs))
            samples = iter(making[0](shard, todo)) if todo else iter(())
            inherits, failed = bool(self.stage.primary), 0

            def pairs() -> Iterator[tuple[Row, Sample]]:
                nonlocal failed
                for row in rows:
                    sample = _next(row.key, known, samples)
                    if sample is None:
                        raise RuntimeError(f"shard {shard.name}: the planned sample {row.key} was not made.")
                    failed += sample.reject is not None and not (inherits and row.reject is not None)
                    yield row, sample

            try:
                info = write_shard(
                    self.folder,
                    shard.name,
                    pairs(),
                    split=shard.split,
                    work=lambda row: work_key(self.work, row),
                )
            finally:
                # Here and now, with the threads it may have: after an error the collector would, anywhere.
                if isinstance(samples, Generator):
                    samples.close()
            return Made(info=info, failed=failed, copied=copied, seconds=time.monotonic() - start)

        return make


def _next(key: str, known: dict[str, Sample], samples: Iterator[Sample]) -> Sample | None:
    """The sample of a key; those that a stage makes before their turn are held, and no others."""
    while key not in known:
        sample = next(samples, None)
        if sample is None:
            return None
        known[sample.key] = sample
    return known.pop(key)


def run_shards(
    planned: PlannedStage, *, executor: Executor, emit: Emit, copy: bool = True, stopped: Callable[[], None]
) -> dict[str, Any]:
    """Makes the output's missing shards and its manifest, which is returned.

    Args:
        copy: False makes every sample, also those that an earlier run has made.
        stopped: called between shards; raises if the run is to end.

    Raises:
        ValueError: too many samples were rejected; all that is finished stays.
    """
    stage, folder, identity = planned.stage, planned.folder, planned.identity
    assert isinstance(stage, ShardStage)
    assert folder is not None
    assert identity is not None
    start = time.monotonic()
    resources = settle(stage.resources, executor.capacity(), shape="pool", accelerated=stage.accelerated)
    inputs = planned.open()
    work = work_of(stage, inputs)
    announce(folder, work)
    plans = stage.plan(inputs)
    tally = Tally(planned.name, stage.max_rejects, total=sum(shard.count for shard in plans), emit=emit)
    pending = []
    for shard in plans:
        index = _committed(folder, shard.name)
        if index is None:
            pending.append(shard)
        else:
            tally.add(index.info, failed=own_rejects(stage, index))
    tally.tell()
    tally.judge()
    maker = ShardMaker(
        stage=stage,
        folder=folder,
        sources=planned.sources,
        work=work,
        earlier=siblings(Storage.at(_parent(folder)), identity.fingerprint, work) if copy and pending else (),
    )
    for _, made in executor.map(
        maker, pending, resources=resources, name=planned.name, describe=lambda shard: shard.name
    ):
        tally.add(made.info, failed=made.failed, copied=made.copied)
        tally.tell()
        tally.judge()
        stopped()
    infos = sorted(tally.infos, key=lambda info: info.name)
    draft = Dataset(folder, describe(infos))

    def spread(factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> list[Any]:
        readers = dataclasses.replace(resources, gpus=0.0)
        found = dict(executor.map(factory, items, resources=readers, name=f"{planned.name} statistics"))
        return [found[n] for n in range(len(items))]

    fields = stage.gathered(inputs, draft, spread)
    record = header(planned, inputs, resources=resources, executor=executor, seconds=time.monotonic() - start)
    whole = not tally.copied and len(pending) == len(plans)
    record["execution"]["whole"] = whole  # what another run may take its pace from
    manifest = write_manifest(folder, describe(infos, **record, **fields))
    for text in manifest.get("warnings", ()):
        emit({"kind": "note", "text": text})
    emit({"kind": "rejects", **manifest["counts"], "rejected_here": tally.failed, "copied": tally.copied})
    for text in manifest.get("notes", ()):  # what a stage's `finish` wants said, such as what it cost
        emit({"kind": "note", "text": text})
    if "told" in fields:  # in one line, what the counts do not say
        emit({"kind": "note", "text": fields["told"]})
    return manifest


class Tally:
    """Counts of a stage as its shards come in."""

    def __init__(self, name: str, max_rejects: float, *, total: int, emit: Emit) -> None:
        self.name, self.max_rejects, self.total, self.emit = name, max_rejects, total, emit
        self.infos: list[ShardInfo] = []
        self.failed = self.copied = 0

    def add(self, info: ShardInfo, *, failed: int, copied: int = 0) -> None:
        self.infos.append(info)
        self.failed += failed
        self.copied += copied

    @property
    def rejects(self) -> dict[str, int]:
        reasons: dict[str, int] = {}
        for info in self.infos:
            for reason, count in info.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + count
        reasons.pop(DROPPED, None)
        return reasons

    def tell(self) -> None:
        done = sum(info.samples for info in self.infos)
        self.emit(
            {
                "kind": "progress",
                "done": done,
                "total": self.total,
                "unit": "samples",
                "shards": len(self.infos),
                "rejects": self.rejects,
                "copied": self.copied,
            }
        )

    def judge(self) -> None:
        """`ValueError` once the rejects are above the share that is allowed, whatever is still to come."""
        if self.failed > self.max_rejects * self.total:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejects.items()))
            raise ValueError(
                f"{self.failed} of {self.total} samples were rejected ({reasons}), more than the "
                f"{self.max_rejects:.0%} that max_rejects allows; look at them, or allow more with "
                f"--{self.name}.max_rejects."
            )


def own_rejects(stage: ShardStage, index: ShardIndex) -> int:
    """Samples that the stage itself rejected; of those that its input had rejected there is no work key."""
    inherits = bool(stage.primary)
    pairs = zip(index.reasons, index.works, strict=True)
    return sum(bool(reason and (work or not inherits)) for reason, work in pairs)


def _committed(folder: Storage, name: str) -> ShardIndex | None:
    """The shard's index if the shard is there whole; what is left of a damaged one is removed."""
    if not folder.exists(f"{name}.parquet"):
        return None
    try:
        index = read_index(folder, name)
        if folder.exists(f"{name}.tar") and folder.size(f"{name}.tar") == index.info.bytes:
            return index
    except ShardError:
        pass
    folder.delete(f"{name}.parquet")
    folder.delete(f"{name}.tar")
    return None


def _parent(folder: Storage) -> str:
    return folder.url.rpartition("/")[0]
