"""What a gang's workers, its driver and Ray Train's controller tell one another, in a small actor.

Workers' events wait here for the driver, so that no step ever does; each worker says once a second how far it
is, and hears whether it is still wanted. It counts the failures in a row between which nothing was gained.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

RESTARTS = 3
"""Failures in a row, without a step further than ever before, after which a gang is given up."""
WAITING = 10_000
"""Events that wait for the driver at most; older ones are dropped first."""
SAFE = "safe"
"""Kind of the event that what a gang has is safe, now that it was told to end."""


class GangStopped(Exception):
    """Raised in a worker that the driver no longer wants."""


class GangPaused(Exception):
    """Raised by a worker that was told to end, once what it has is safe: another run goes on from there."""


class GangFailed(RuntimeError):
    """A gang that was started again and again, and got no further."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker runs."""

    rank: int
    node: str
    """Ray's id of it."""
    host: str
    pid: int
    started: float = 0.0
    """Unix time of the process's start: a later process with this id is another."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker says once a second."""

    rank: int
    attempt: int
    done: int = 0
    """How far it is, in its own unit."""
    steps: int = 0
    """Of this attempt."""
    busy: float = 0.0
    """Seconds of its own work in all of them: what it did not wait for others."""
    phase: str = ""
    """What it does beside steps, that may take long."""
    stack: str = ""
    """Where its training stands, if that was asked."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    wanted: bool
    """False for a worker of an earlier attempt, or of a gang that was given up."""
    stopping: bool
    """Whether the gang is to make safe what it has, and end."""
    stack: bool
    """Whether to say where it stands."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a gang stands, for its driver."""

    attempt: int
    """-1 before the first."""
    places: Sequence[Place]
    reports: Mapping[int, Report]
    """The last of each rank of this attempt."""
    ages: Mapping[int, float]
    """Seconds since then; of a rank that was never heard, since the attempt began."""
    ended: bool
    """Whether a worker was lost or has left, so that all start again."""
    events: Sequence[dict[str, Any]]


@dataclass
class Mailbox:
    """All of it runs in one thread of one process."""

    restarts: int = RESTARTS
    clock: Callable[[], float] = time.monotonic
    error: BaseException | None = None
    """Makes another attempt useless."""
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=WAITING))
    attempt: int = -1
    places: Sequence[Place] = ()
    furthest: int = -1
    """Of all attempts."""
    vain: int = 0
    """Failures in a row without progress."""
    _reached: int = -1
    """`furthest` at the last failure."""
    _closed: int = -1
    """The last attempt whose end was counted."""
    _paused: str = ""
    """Why the whole gang is to end, as the driver wishes."""
    _resizing: bool = False
    _cause: str = ""
    """Why the last attempt ended."""
    _still: float | None = None
    """Since when nothing is done, while one attempt has ended and the next makes no step yet."""
    _moved: float = 0.0
    _reports: dict[int, Report] = field(default_factory=dict)
    _heard: dict[int, float] = field(default_factory=dict)
    _asked: set[int] = field(default_factory=set)

    # The controller's

    def begin(self, attempt: int, places: Sequence[Place]) -> None:
        """An attempt has its workers."""
        if self._closed < self.attempt and self._still is None and attempt:
            self.close("it ended")
        self.attempt, self.places = attempt, places
        self._reports, self._asked, self._resizing = {}, set(), False
        self._heard = dict.fromkeys((place.rank for place in places), self.clock())

    def failed(self, attempt: int, cause: str) -> None:
        """A worker of this attempt was lost, or raised what may not happen again."""
        if attempt <= self._closed:
            return
        self.close(cause)
        self.vain = 0 if self.furthest > self._reached else self.vain + 1
        self._reached = self.furthest
        if self.vain >= self.restarts:
            self.give_up(
                GangFailed(
                    f"started again {self.vain} times in a row without getting any further; "
                    f"the last time: {cause}"
                )
            )

    def resize(self) -> None:
        """Asks the workers to make safe what they have and end, so that more of them go on from it."""
        self._resizing = True

    def fate(self) -> tuple[BaseException | None, str]:
        """What makes another attempt useless, and the wish to pause."""
        return self.error, self._paused

    # The workers'

    def put(self, event: dict[str, Any]) -> bool:
        """Whether the gang is still wanted."""
        self.events.append(event)
        return self.error is None

    def beat(self, report: Report) -> Reply:
        if report.attempt != self.attempt:
            return Reply(wanted=False, stopping=True, stack=False)
        now, before = self.clock(), self._reports.get(report.rank)
        if report.stack:
            self._asked.discard(report.rank)
        elif before is not None and before.stack and report.steps == before.steps:
            report = replace(report, stack=before.stack)
        self._reports[report.rank], self._heard[report.rank] = report, now
        if report.steps:
            if self._still is not None and self._closed < self.attempt:
                self._goes_on(now)
            if report.done > self.furthest:
                self.furthest = report.done
            if before is None or report.steps > before.steps:
                self._moved = now
        wanted, stopping = self.error is None, bool(self._paused or self._resizing)
        return Reply(wanted=wanted, stopping=stopping, stack=report.rank in self._asked)

    def paused(self, attempt: int, error: GangPaused) -> bool:
        """A worker has ended as it was told; whether that is the end, and not the way to another attempt."""
        if attempt == self.attempt:
            self.close(str(error))
        if self._paused:
            if self.error is None:
                self.put({"kind": SAFE})
            self.give_up(error)
        return bool(self._paused)

    def give_up(self, error: BaseException) -> None:
        self.error = self.error or error

    # The driver's

    def pause(self, why: str) -> None:
        """Asks all workers to make safe what they have, and end."""
        self._paused = self._paused or why

    def ask(self) -> None:
        """For where all workers stand."""
        self._asked = {place.rank for place in self.places}
        self._reports = {rank: replace(told, stack="") for rank, told in self._reports.items()}

    def final(self) -> BaseException | None:
        return self.error

    def take(self) -> list[dict[str, Any]]:
        taken = list(self.events)
        self.events.clear()
        return taken

    def look(self) -> Standing:
        """With the events that came since."""
        now = self.clock()
        return Standing(
            attempt=self.attempt,
            places=self.places,
            reports=dict(self._reports),
            ages={rank: now - heard for rank, heard in self._heard.items()},
            ended=self._closed >= self.attempt,
            events=self.take(),
        )

    def close(self, cause: str) -> None:
        """The present attempt has ended."""
        if self._closed >= self.attempt:
            return
        self._closed, self._cause = self.attempt, cause
        if self._still is None:
            self._still = self._moved or self.clock()

    def _goes_on(self, now: float) -> None:
        assert self._still is not None
        seconds, self._still = now - self._still, None
        said = {"kind": "restart", "attempt": self.attempt, "world": len(self.places), "cause": self._cause}
        self.put({**said, "seconds": seconds})
        workers = f"{len(self.places)} worker{'s' if len(self.places) > 1 else ''}"
        text = f"Goes on with {workers}, {seconds:.0f} s after: {self._cause}"
        self.put({"kind": "note", "text": text})
