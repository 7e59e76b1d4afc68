"""Runs stages as their inputs come to be there, each when its resources fit beside those that run."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cluster.gang import GangPaused
from cluster.mapping import Executor
from cluster.resources import settle
from cluster.storage import Storage
from pipelines.runner.events import Bus
from pipelines.runner.journal import Journal
from pipelines.runner.plan import PlannedStage, Planner
from pipelines.runner.shard_run import run_shards
from pipelines.runner.stage_run import run_stage
from pipelines.runner.uses import Uses
from pipelines.stage import ShardStage

INTERRUPTED = "Interrupted; the same command goes on from here."
GRACE = 5.0
"""Seconds that running stages have to end after an interrupt."""
PATIENCE = "LATENTMILL_GRACE"
"""Seconds that trainings have before that to write a checkpoint and end; 30 if not set."""
ROOM = 64 * 2**20
"""Bytes that a store should have free beside what the stages need."""


class StageError(ValueError):
    """A stage that could not be finished. What it has finished stays, and the next run goes on from there."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage


@dataclass
class Run:
    """A run in progress."""

    planner: Planner
    executor: Executor
    bus: Bus
    patience: float
    journal: Journal | None = None
    uses: Uses | None = None
    """Told what is used before it is, so that gc leaves it there."""
    ran: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    pausing: threading.Event = field(default_factory=threading.Event)
    """Only trainings go on, to their next checkpoint."""

    def all_stages(self) -> None:
        """Raises the first failure, when what was running beside it has ended."""
        if not self.executor.parallel:
            while ready := self.ready():
                try:
                    self.one_stage(ready[0])
                except GangPaused as paused:
                    raise KeyboardInterrupt(str(paused)) from paused
            return
        capacity = self.executor.capacity()
        free = [capacity.cpus, capacity.gpus]
        ended: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()
        going: dict[str, tuple[threading.Thread, float, float]] = {}
        failure: BaseException | None = None
        try:
            while True:
                for planned in self.ready() if failure is None else ():
                    cpus, gpus = self.footprint(planned)
                    fits = cpus <= free[0] and gpus <= free[1]
                    if planned.name not in going and (fits or not going):
                        free = [free[0] - cpus, free[1] - gpus]
                        thread = threading.Thread(
                            target=self._thread, args=(planned, ended), name=planned.name, daemon=True
                        )
                        going[planned.name] = (thread, cpus, gpus)
                        thread.start()
                if not going:
                    break
                name, error = _wait(ended, self.executor)
                _, cpus, gpus = going.pop(name)
                free = [free[0] + cpus, free[1] + gpus]
                failure = failure or error
        except KeyboardInterrupt:
            self.pausing.set()
            with contextlib.suppress(KeyboardInterrupt):  # a second one does not wait
                self.executor.pause(grace())
            self.stop.set()
            self.executor.cancel()
            for thread, _, _ in going.values():
                thread.join(GRACE / len(going))
            raise
        if failure is not None:
            raise failure

    def _thread(
        self, planned: PlannedStage, ended: queue.SimpleQueue[tuple[str, BaseException | None]]
    ) -> None:
        try:
            self.one_stage(planned)
        except BaseException as error:
            ended.put((planned.name, error))
        else:
            ended.put((planned.name, None))

    def ready(self) -> list[PlannedStage]:
        planned = self.uses.settle(self.planner) if self.uses else self.planner.plan()
        return [stage for stage in planned.stages if stage.state == "run"]

    def footprint(self, planned: PlannedStage) -> tuple[float, float]:
        """CPUs and GPUs of all workers of a stage together."""
        stage = planned.stage
        shape = "pool" if isinstance(stage, ShardStage) else "gang"
        asked = settle(stage.resources, self.executor.capacity(), shape=shape, accelerated=stage.accelerated)
        workers = asked.running(self.executor.capacity()) if shape == "gang" else asked.workers or 1
        return (asked.cpus or 1) * workers, (asked.gpus or 0) * workers

    def one_stage(self, planned: PlannedStage) -> None:
        name, start = planned.name, time.monotonic()

        def emit(event: dict[str, Any]) -> None:
            self.bus({**event, "stage": name})

        if planned.identity is None:
            planned = self.settle(planned, emit)
            if self.uses:
                planned = self.uses.settle(self.planner)[name]
            if planned.state == "done":
                return
        folder = planned.folder
        assert folder is not None
        assert planned.identity is not None
        forced = name in self.planner.forced
        if self.journal:
            self.journal.remember(name, planned.identity)
        described = planned.as_json()
        emit({**described, "kind": "stage_start", "type": described["stage"],
              "meaning": dict(planned.identity.meaning)})  # fmt: skip
        try:
            check_room(self.planner.store, [planned])
            if forced:
                discard(planned)
            if isinstance(planned.stage, ShardStage):
                manifest = run_shards(
                    planned, executor=self.executor, emit=emit, copy=not forced, stopped=self.pauses
                )
            else:
                manifest = run_stage(
                    planned,
                    executor=self.executor,
                    emit=emit,
                    patience=self.patience,
                    stopped=self.stopped,
                    pauses=self.pauses,
                )
            self.planner.finish(name)
        except BaseException as error:
            paused = isinstance(error, GangPaused)
            cut = paused or self.pausing.is_set() or self.stop.is_set() or not isinstance(error, Exception)
            message = INTERRUPTED if cut else self.explain(name, error)
            message = str(error) if paused else message
            end = {"kind": "stage_end", "state": "interrupted" if cut else "failed", "error": message}
            emit({**end, "folder": folder.url, "seconds": time.monotonic() - start})
            if cut:
                raise
            raise StageError(name, message) from error
        self.ran.append(name)
        emit({"kind": "stage_end", "state": "done", "error": None, "folder": folder.url,
              "manifest": manifest, "seconds": time.monotonic() - start})  # fmt: skip
        self.report()

    def settle(self, planned: PlannedStage, emit: Callable[[dict[str, Any]], None]) -> PlannedStage:
        """Finds out what was too much to find out while planning: a large source is read through."""
        emit({"kind": "note", "text": planned.reason})

        def tell(done: int, of: int, unit: str = "parts") -> None:
            self.pauses()
            emit({"kind": "progress", "done": done, "total": of, "unit": unit})

        try:
            fetch = functools.partial(tell, unit="MB")
            return self.planner.settle(planned.name, self.executor, tell, fetch)
        except Exception as error:
            if self.stop.is_set():
                raise
            raise StageError(planned.name, self.explain(planned.name, error)) from error

    def stopped(self) -> None:
        if self.stop.is_set():
            raise RuntimeError("the run was interrupted.")

    def pauses(self) -> None:
        """For all but a training."""
        if self.pausing.is_set():
            raise RuntimeError("the run was interrupted.")
        self.stopped()

    def explain(self, name: str, error: BaseException) -> str:
        """One line; for what is not the user's mistake, with the place of the whole story."""
        line = next((text.strip() for text in str(error).splitlines() if text.strip()), "")
        if isinstance(error, ValueError) and line:
            return line
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f"{self.planner.store.url}, or in the folder for temporary files"
            return f"there is no room left in {where}: make room, and the same command goes on from here."
        story = f"{type(error).__name__}: {line}" if line else type(error).__name__
        if self.journal:
            file = f"errors/{name}.txt"
            with contextlib.suppress(OSError):
                self.journal.folder.replace(file, "".join(traceback.format_exception(error)).encode())
                story += f" (all of it in {self.journal.folder.url}/{file})"
        return story

    def report(self) -> None:
        """Draws the report anew. What goes wrong there never stops a run."""
        try:
            from pipelines import report

            with self.bus.lock:
                report.write(self.planner.store, self.planner.recipe.name)
        except ImportError:
            return
        except Exception as error:
            self.bus({"kind": "note", "stage": "", "text": f"The report was not drawn: {error}"})


def grace() -> float:
    """Seconds that trainings have to write a checkpoint when the run is told to end."""
    return float(os.environ.get(PATIENCE) or 30.0)


def discard(planned: PlannedStage) -> None:
    """Deletes an output and its checkpoints, the manifest first: at no time does a part look finished."""
    assert planned.folder is not None
    planned.folder.delete("manifest.json")
    for name in planned.folder.list():
        if name.endswith(".parquet"):
            planned.folder.delete(name)
    planned.folder.delete_folder()
    if planned.checkpoints is not None:
        planned.checkpoints.delete_folder()


def check_room(store: Storage, stages: Iterable[PlannedStage]) -> None:
    """`ValueError` if the store has less room than the stages that can run now will take."""
    free = store.free()
    if free is None:
        return
    needed: dict[str, int] = {}
    for planned in stages:
        if planned.state == "run" and planned.folder is not None:
            present = sum(planned.folder.size(name) for name in planned.folder.list())
            needed[planned.name] = max(0, planned.stage.bytes_needed(planned.open()) - present)
    if sum(needed.values()) + ROOM > free:
        raise ValueError(
            f"{' and '.join(needed)} will take about {sum(needed.values()) / 1e9:.2f} GB in {store.url}, "
            f"where {free / 1e9:.2f} GB are free: make room, or put the store elsewhere (LATENTMILL_STORE)."
        )


def _wait(ended: queue.SimpleQueue[Any], executor: Executor) -> Any:
    """As `get`, but an interrupt from the keyboard comes through, and `HeadLost`."""
    while True:
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=0.5)
        executor.check()
