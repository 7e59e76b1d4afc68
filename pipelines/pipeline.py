"""Runs what a recipe has not done yet. The same command again is the resume.

Everything that is finished is found from the store; nothing heavy is imported, and Ray is not started, before
a stage must run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.mapping import Executor, InlineExecutor, RayExecutor
from cluster.session import RaySession
from cluster.storage import Storage
from pipelines.runner.events import Bus, Listener, recorded
from pipelines.runner.execute import INTERRUPTED, Run, StageError, check_room
from pipelines.runner.journal import Journal
from pipelines.runner.meters import Meters
from pipelines.runner.plan import Plan, PlannedStage, Planner, Recipe, plan
from pipelines.runner.uses import Uses, note_done

__all__ = ["Plan", "PlannedStage", "RunResult", "StageError", "plan", "run"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    plan: Plan
    """As it stands at the end."""
    ran: tuple[str, ...]
    """Stages that were not done at the start, in the order in which they ended."""
    seconds: float
    dashboard_url: str | None = None


def run(
    recipe: Recipe,
    store: Storage,
    *,
    executor: Literal["ray", "inline"] | Executor = "ray",
    until: str | None = None,
    force: Iterable[str] = (),
    listeners: Sequence[Listener] = (),
    record: bool = True,
    patience: float = 30.0,
) -> RunResult:
    """Runs every stage that is not done, each as soon as its inputs are and its resources fit.

    Args:
        until: only this stage and what it needs.
        force: stages to run though they are finished; their output and checkpoints are deleted first.
        listeners: called with every event, one at a time, in whichever thread it happens.
        record: whether the run is recorded in MLflow.
        patience: seconds that another driver's heartbeat may stand still before a training is taken over.

    Raises:
        ValueError: a mistake of the recipe, or too little room in the store: nothing has run.
        StageError: a stage failed; the others that were running have been finished.
        KeyboardInterrupt: as it came; finished shards and checkpoints stay.
    """
    planner = Planner(recipe, store, until=until, force=force)
    uses = Uses(store, recipe.name, partial=until is not None, patience=patience)
    with uses.held(planner):
        return _run(planner, uses, executor, listeners, record=record, patience=patience)


def _run(
    planner: Planner,
    uses: Uses,
    executor: Literal["ray", "inline"] | Executor,
    listeners: Sequence[Listener],
    *,
    record: bool,
    patience: float,
) -> RunResult:
    start, recipe, store = time.monotonic(), planner.recipe, planner.store
    first = planner.plan()
    if first.done:
        first = note_done(planner, partial=uses.partial)
    bus = Bus(list(listeners))
    told = {"kind": "plan", "stage": "", "recipe": recipe.name, "store": store.url,
            "stages": [stage.as_json() for stage in first.stages]}  # fmt: skip
    bus(told)
    if first.done:
        seconds = time.monotonic() - start
        bus({"kind": "run_end", "stage": "", "state": "done", "seconds": seconds})
        return RunResult(plan=first, ran=(), seconds=seconds)
    first = uses.settle(planner)
    check_room(store, first.stages)
    chosen = _executor(executor, store)
    running = Run(planner=planner, executor=chosen, bus=bus, patience=patience, uses=uses)
    state, error = "failed", ""
    with contextlib.ExitStack() as stack:
        if chosen is not executor:
            stack.callback(chosen.close)
        running.journal = Journal(store, recipe.name, getattr(recipe, "text", ""))
        running.journal.open()
        running.journal(told)
        running.report()
        bus.listeners.append(running.journal)
        bus.listeners.append(uses)
        if isinstance(chosen, RayExecutor):
            meters = Meters(recipe.name)
            stack.callback(meters.close)
            bus.listeners.append(meters)
        if record:
            bus.listeners.append(stack.enter_context(recorded(store, recipe, bus)))
        try:
            running.all_stages()
            state = "done"
        except KeyboardInterrupt:
            state, error = "interrupted", INTERRUPTED
            running.stop.set()
            raise
        except Exception as failure:
            error = str(failure)
            raise
        finally:
            bus({"kind": "run_end", "stage": "", "state": state, "error": error,
                 "seconds": time.monotonic() - start})  # fmt: skip
            running.report()
    return RunResult(
        plan=planner.plan(),
        ran=tuple(running.ran),
        seconds=time.monotonic() - start,
        dashboard_url=chosen.session.dashboard_url if isinstance(chosen, RayExecutor) else None,
    )


def _executor(chosen: Literal["ray", "inline"] | Executor, store: Storage) -> Executor:
    if chosen == "inline":
        return InlineExecutor()
    if chosen == "ray":
        session = RaySession(shared=store.folder("cache").folder("ray").url)
        session.begin()
        return RayExecutor(session)
    return chosen
