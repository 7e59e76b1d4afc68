"""Runs a `Stage` as a whole, under a lease: of several drivers one works, the others wait for its result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.lease import Lease, LeaseLost
from cluster.mapping import Executor
from cluster.resources import Resources, settle
from cluster.storage import Storage
from pipelines.dataset import read_manifest, write_manifest
from pipelines.runner.artifacts import finished
from pipelines.runner.plan import PlannedStage
from pipelines.runner.record import header
from pipelines.stage import Stage
from pipelines.training.account import told

Emit = Callable[[dict[str, Any]], None]


@dataclass
class StageSession:
    """What a running stage holds; see `pipelines.stage.Session`."""

    inputs: Mapping[str, Any]
    output: Storage
    checkpoints: Storage
    scratch: Path
    resources: Resources
    holder: Lease
    name: str
    executor: Executor
    pool: Resources
    emit: Emit
    stopped: Callable[[], None]
    pauses: Callable[[], None]

    @property
    def lease(self) -> int:
        return self.holder.number

    def event(self, event: dict[str, Any]) -> None:
        """Tells what happens.

        Raises:
            LeaseLost: another driver has taken over; the stage is to end here.
        """
        self.holder.check()
        self.stopped()
        self.emit(event)

    def gang(self, worker: Callable[..., dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
        return self.executor.gang(
            worker, config, resources=self.resources, name=self.name, on_event=self.event
        )

    def map(self, factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
        for _, result in self.executor.map(factory, items, resources=self.pool, name=self.name):
            self.holder.check()
            self.pauses()
            yield result


def run_stage(
    planned: PlannedStage,
    *,
    executor: Executor,
    emit: Emit,
    patience: float = 30.0,
    stopped: Callable[[], None],
    pauses: Callable[[], None],
) -> dict[str, Any]:
    """Runs the stage, or follows the driver that does, and returns the manifest.

    Args:
        patience: seconds that another driver's heartbeat may stand still before this one takes over.
        stopped: called at every event; raises if the run is to end.
        pauses: as that, and raises already where trainings may still write a checkpoint.
    """
    stage, output, checkpoints = planned.stage, planned.folder, planned.checkpoints
    assert isinstance(stage, Stage)
    assert output is not None
    assert checkpoints is not None
    capacity = executor.capacity()
    resources = settle(stage.resources, capacity, shape="gang", accelerated=stage.accelerated)
    pool = settle(stage.resources, capacity, shape="pool", accelerated=stage.accelerated)
    lease = Lease(checkpoints.folder("lease"), patience=patience)

    def done() -> bool:
        pauses()
        return finished(output)

    def waiting(holder: str) -> None:
        emit({"kind": "note", "text": f"Another driver is at it ({holder}); this one follows."})

    while lease.acquire(finished=done, waiting=waiting):
        start = time.monotonic()
        inputs = planned.open()
        with (
            lease.held(),
            tempfile.TemporaryDirectory(prefix="latentmill-", ignore_cleanup_errors=True) as scratch,
        ):
            session = StageSession(
                inputs=inputs,
                output=output,
                checkpoints=checkpoints,
                scratch=Path(scratch),
                resources=resources,
                holder=lease,
                name=planned.name,
                executor=executor,
                pool=pool,
                emit=emit,
                stopped=stopped,
                pauses=pauses,
            )
            try:
                said = stage.run(session)
                lease.beat()
            except LeaseLost:
                emit({"kind": "note", "text": "Another driver has taken over; this one follows."})
                continue
            record = header(
                planned, inputs, resources=resources, executor=executor, seconds=time.monotonic() - start
            )
            if line := told(said.get("time") or {}):
                emit({"kind": "note", "text": line})
            said = said if stage.output == "dataset" else {stage.output: said}
            return write_manifest(output, {**record, **said}, kind=stage.output)
    return read_manifest(output)
