"""The driver's side of a gang: hands on its events, and watches that it does not stand still."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.mailbox import GangStopped, Place, Standing
from cluster.pulse import BEAT
from cluster.watch import Hung, Slow, Watch, culprits, shown

POLL = 0.5
"""Seconds between two looks of the driver at the gang."""
STACKS = 4 * BEAT
"""Seconds that workers have to say where they stand."""


class Line(Protocol):
    """To the mailbox and the workers' machines."""

    def look(self) -> Standing: ...
    def pause(self, why: str) -> None: ...
    def ask(self) -> None: ...
    def give_up(self, error: BaseException) -> None: ...

    def end(self, place: Place) -> None:
        """Ends the worker's process, if it still is that one."""
        ...


@dataclass
class Keeper:
    """Its `run` is a thread's."""

    line: Line
    name: str
    on_event: Callable[[dict[str, Any]], None]
    cancelled: threading.Event
    """The gang is to end at once."""
    paused: threading.Event
    """It is to make safe what it has, and end."""
    watch: Watch = field(default_factory=Watch)
    stop: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    _told: bool = False
    _hung: Hung | None = None
    """A hang whose culprits are still asked for."""
    _since: float = 0.0

    def run(self) -> None:
        try:
            while not self.stop.wait(POLL):
                self.look()
        except BaseException as error:
            self.error = error
            with contextlib.suppress(Exception):
                self.line.give_up(GangStopped(str(error)))

    def look(self) -> None:
        if self.cancelled.is_set():
            raise GangStopped(f"{self.name} was interrupted.")
        if self.paused.is_set() and not self._told:
            self.line.pause("the run is to end")
            self._told = True
        standing = self.line.look()
        for event in standing.events:
            self.on_event(event)
        self._judge(standing)

    def _judge(self, standing: Standing) -> None:
        found = self.watch.look(standing)
        if isinstance(found, Slow):
            place = next((p for p in standing.places if p.rank == found.rank), None)
            where = f" on {place.host}" if place else ""
            self._note(f"Worker {found.rank}{where} takes {found.ratio:.1f} times as long as the others.")
            self.on_event({"kind": "straggler", "rank": found.rank, "ratio": found.ratio})
        if isinstance(found, Hung):
            if found.ranks:
                self._end(standing, found.ranks, found.seconds, "does not answer")
                return
            self.line.ask()
            self._hung, self._since = found, time.monotonic()
        elif self._hung is not None:
            said = sum(bool(report.stack) for report in standing.reports.values())
            if said < len(standing.places) and time.monotonic() - self._since < STACKS:
                return
            hung, self._hung = self._hung, None
            for rank, report in sorted(standing.reports.items()):
                if report.stack:
                    self._note(f"Worker {rank} stands in {shown(report.stack)}")
                    self.on_event({"kind": "stack", "rank": rank, "text": report.stack})
            ranks = culprits(standing.reports)
            word = "makes no step" if ranks else "makes no step, as all the others"
            self._end(standing, ranks or (standing.places[0].rank,), hung.seconds, word)

    def _end(self, standing: Standing, ranks: tuple[int, ...], seconds: float, what: str) -> None:
        for place in standing.places:
            if place.rank in ranks:
                self._note(
                    f"Worker {place.rank} on {place.host} (process {place.pid}) {what}; nothing was done for "
                    f"{seconds:.0f} s. It is ended, and the training starts again from its last checkpoint."
                )
                with contextlib.suppress(Exception):
                    self.line.end(place)

    def _note(self, text: str) -> None:
        self.on_event({"kind": "note", "text": text})
