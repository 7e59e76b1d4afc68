"""The way of a run's events to those who listen: the terminal, the journal, the record in MLflow."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.storage import Storage
from pipelines.runner.plan import Recipe

FLUSH = 20.0
"""Seconds that the end of a run waits for MLflow at most; what is left then is flushed by the next run."""
HURRY = 2.0
"""The same for a run that was interrupted or failed."""

Listener = Callable[[dict[str, Any]], None]


@dataclass
class Bus:
    """Brings events to the listeners, one at a time, with the time they happened."""

    listeners: list[Listener]
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __call__(self, event: dict[str, Any]) -> None:
        with self.lock:
            event.setdefault("time", time.time())
            for listener in list(self.listeners):
                listener(event)


@contextlib.contextmanager
def recorded(store: Storage, recipe: Recipe, bus: Bus) -> Iterator[Listener]:
    """A listener that keeps the record in MLflow; one that fails is told once and then left alone."""
    try:
        from pipelines.tracking import Tracker

        tracker = Tracker(store, recipe.name, resolved=getattr(recipe, "text", ""))
    except (ImportError, ValueError, OSError) as error:
        bus({"kind": "note", "stage": "", "text": f"Not recorded in MLflow: {error}"})
        yield lambda event: None
        return
    broken = False

    def listen(event: dict[str, Any]) -> None:
        nonlocal broken
        if broken:
            return
        try:
            tracker(event)
        except Exception as error:
            broken = True
            bus({"kind": "note", "stage": "", "text": f"No longer recorded in MLflow: {error}"})

    patience = HURRY
    try:
        yield listen
        patience = FLUSH
    finally:
        with contextlib.suppress(Exception):
            tracker.close(seconds=patience, report=_report_of(store, recipe.name))


def _report_of(store: Storage, recipe: str) -> Path | None:
    folder = store.folder("runs").folder(recipe)
    return folder.local("report.html") if folder.exists("report.html") else None
