"""A driver of an ingest (`python -m tests.pipelines.ingest_driver`) for tests that kill it and its processes.

Its survey is of many small parts and runs where tasks run, also for a pile of a few hundred images. Workers
import this module with the stage, so that both holds there too.
"""

from __future__ import annotations

import fnmatch
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.mapping import Executor, InlineExecutor, RayExecutor
from cluster.session import RaySession
from cluster.storage import LocalStorage, Storage
from pipelines import pipeline
from pipelines.sources import layout, survey
from pipelines.sources.blobs import Blobs
from pipelines.sources.folder import FolderSource
from pipelines.sources.source import Found, Part
from pipelines.sources.split import Split
from pipelines.stage import Inputs, Row, Sample, ShardPlan, execution
from pipelines.stages import ingest
from tests.pipelines.toys import ToyRecipe, note

if "pytest" not in sys.modules:  # a test takes the names from here, and its process stays as it is
    layout._CHUNK = 16
    survey.SMALL = 0


@dataclass(frozen=True, kw_only=True)
class Folder(FolderSource):
    """Notes each part that it reads."""

    log: str = execution("")

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        note(self.log, "read", part.name.replace(" ", "_"))
        yield from super().read(part, limit, known, blobs)


@dataclass(frozen=True, kw_only=True)
class Ingest(ingest.Ingest):
    """Notes each shard that it begins to make."""

    log: str = execution("")

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        make = super().open(inputs)

        def noted(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            note(self.log, "made", shard.name)
            yield from make(shard, rows)

        return noted


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a driver is told, as JSON."""

    images: str
    store: str
    log: str
    samples_per_shard: int
    ray: str = ""
    """Ray's folder, whose path must be short; without, all is done in this process."""
    workers: int = 2
    die_at: str = ""
    """Pattern of the store's file before whose writing the driver kills itself,"""
    nth: int = 1
    """at the n-th of them."""

    @property
    def stage(self) -> Ingest:
        return Ingest(
            source=Folder(path=Path(self.images), log=self.log),
            size=48,
            split=Split(validation=0.1, test=0.1),
            samples_per_shard=self.samples_per_shard,
            log=self.log,
        )

    @property
    def executor(self) -> Executor:
        if not self.ray:
            return InlineExecutor()
        options = {"num_cpus": self.workers, "object_store_memory": 100 * 2**20, "_temp_dir": self.ray}
        return RayExecutor(RaySession(dashboard=False, options=options))


def arm(store: Path, pattern: str, nth: int) -> None:
    """Has this process die at the n-th write of a file of this pattern."""
    original, count = LocalStorage.put_if_absent, 0

    def put_if_absent(self: LocalStorage, name: str, source: bytes | Path) -> bool:
        nonlocal count
        if fnmatch.fnmatch((self.path / name).relative_to(store).as_posix(), pattern):
            count += 1
            if count == nth:
                os.kill(os.getpid(), signal.SIGKILL)
        return original(self, name, source)

    LocalStorage.put_if_absent = put_if_absent


def main(told: str) -> None:
    task = Task(**json.loads(told))
    if task.die_at:
        arm(Path(task.store), task.die_at, task.nth)
    found: Any = ToyRecipe({"images": task.stage}, name="kills")
    pipeline.run(found, Storage.at(task.store), executor=task.executor, record=False)


if __name__ == "__main__":
    # What is pickled must be found by workers under its own name, not as part of the main script.
    from tests.pipelines import ingest_driver

    ingest_driver.main(sys.argv[1])
