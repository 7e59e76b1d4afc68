"""Whether a gang stands still, who holds it up, and who is slower than the others.

Pure arithmetic on what workers report: it is told how they stand, and says what is the matter.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from cluster.mailbox import Report, Standing


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Each can be set in the environment: LATENTMILL_HANG_FLOOR=300, in seconds, say."""

    silent: float = 60.0
    """Seconds without a sign of life of one worker, while the others live and nothing is done; of one that
    is alone, half as long again."""
    floor: float = 600.0
    """Seconds without a step after which it is a hang, at least."""
    times: float = 20.0
    """The same, in usual step times, where that is longer."""
    slow: float = 3600.0
    """The same before the third step, which may compile, and where a worker says that it does something else:
    validation, pictures, a checkpoint. No less than the others."""
    ratio: float = 1.5
    """A worker whose own work takes that many times the others' median is named."""
    window: int = 50
    """Steps over which that is measured, twice in a row."""
    again: float = 600.0
    """Seconds before the same one is named again."""

    @classmethod
    def here(cls) -> Limits:
        """As the environment says."""
        prefix = "LATENTMILL_HANG_"
        told = {f.name: os.environ.get(prefix + f.name.upper()) for f in fields(cls)}
        return cls(
            **{name: (int if name == "window" else float)(text) for name, text in told.items() if text}  # pyright: ignore[reportArgumentType]
        )


@dataclass(frozen=True, kw_only=True)
class Hung:
    """The gang stands still."""

    ranks: tuple[int, ...]
    """Of those who do not answer; empty where all do, and their stacks have to tell."""
    seconds: float
    """Since the last step."""


@dataclass(frozen=True, kw_only=True)
class Slow:
    """One worker holds the others up."""

    rank: int
    ratio: float
    """Its own work's time over the median of the others'."""


@dataclass
class Watch:
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    _attempt: int = -1
    _steps: int = 0
    """Of the furthest rank."""
    _moved: float = 0.0
    _judged: bool = False
    _unheard: float | None = None
    """Since when a worker that is alone is known not to be heard."""
    _aside: float = 0.0
    """When a worker last did something else than steps."""
    _pace: deque[float] = field(default_factory=lambda: deque(maxlen=21))
    """Seconds a step, of the last advances."""
    _window: dict[int, Report] = field(default_factory=dict)
    """Reports at its start."""
    _opened: float = 0.0
    _suspect: int | None = None
    _told: dict[int, float] = field(default_factory=dict)

    def look(self, standing: Standing) -> Hung | Slow | None:
        """What is the matter, if anything; a hang is told once an attempt."""
        now = self.clock()
        if standing.attempt != self._attempt:
            self._attempt, self._steps, self._moved, self._judged = standing.attempt, 0, now, False
            self._window, self._suspect, self._aside, self._unheard = {}, None, now, None
            self._pace.clear()
        if not standing.places or standing.ended:
            return None
        steps = max((report.steps for report in standing.reports.values()), default=0)
        if steps > self._steps:
            if self._steps:
                self._pace.append((now - self._moved) / (steps - self._steps))
            self._steps, self._moved = steps, now
        if any(report.phase for report in standing.reports.values()):
            self._aside = now
        if not self._judged:
            hung = self._hung(standing, now)
            if hung is not None:
                self._judged = True
                return hung
        return self._slow(standing, now)

    def _hung(self, standing: Standing, now: float) -> Hung | None:
        still = now - self._moved
        silent = tuple(sorted(rank for rank, age in standing.ages.items() if age > self.limits.silent))
        # Where nobody of several is heard, it is the mailbox or the network: that ends by itself, or by the
        # limit below. One that is alone would end itself about now; half as long again, as the mailbox may
        # have stood still, and a machine may have too much to do.
        if len(silent) < len(standing.places) or len(silent) > 1:
            self._unheard = None
        elif self._unheard is None:
            self._unheard = now
        sure = len(silent) < len(standing.places) or (
            self._unheard is not None and now - self._unheard > self.limits.silent / 2
        )
        if silent and sure and still > self.limits.silent:
            return Hung(ranks=silent, seconds=still)
        if min(still, now - self._aside) > self._limit() or still > self.limits.slow:
            return Hung(ranks=silent if len(silent) < len(standing.places) else (), seconds=still)
        return None

    def _limit(self) -> float:
        if self._steps < 3:
            return self.limits.slow
        usual = statistics.median(self._pace) if self._pace else 0.0
        return max(self.limits.floor, self.limits.times * usual)

    def _slow(self, standing: Standing, now: float) -> Slow | None:
        reports = standing.reports
        if len(reports) < len(standing.places) or len(reports) < 2:
            return None
        if not self._window:
            self._window, self._opened = dict(reports), now
        before, limits = self._window, self.limits
        if any(reports[rank].steps - before[rank].steps < limits.window for rank in reports):
            return None
        each = {
            rank: (reports[rank].busy - before[rank].busy) / (reports[rank].steps - before[rank].steps)
            for rank in reports
        }
        step = (now - self._opened) / max(reports[rank].steps - before[rank].steps for rank in reports)
        self._window, self._opened = dict(reports), now
        worst = max(each, key=lambda rank: each[rank])
        usual = statistics.median(seconds for rank, seconds in each.items() if rank != worst)
        excess = each[worst] - usual
        if usual <= 0 or each[worst] < limits.ratio * usual or excess < 0.1 * step:
            self._suspect = None
            return None
        known, self._suspect = self._suspect, worst
        if known != worst or now - self._told.get(worst, -limits.again) < limits.again:
            return None
        self._told[worst] = now
        return Slow(rank=worst, ratio=each[worst] / usual)


WAITING = ("torch/distributed/", "torch/autograd/", "training/agreement.py", "nn/parallel/distributed.py")
"""Files in whose calls a worker waits for the others."""


def culprits(reports: Mapping[int, Report]) -> tuple[int, ...]:
    """Who holds up a gang that answers but makes no step: the least advanced, of these whoever does not wait
    for others; empty where that cannot be told."""
    if not reports:
        return ()
    least = min(report.steps for report in reports.values())
    behind = {rank: report for rank, report in reports.items() if report.steps == least}
    if len(behind) < len(reports) and least < max(report.steps for report in reports.values()) - 1:
        return tuple(sorted(behind))
    busy = tuple(
        sorted(
            rank
            for rank, report in reports.items()
            if report.stack and not any(part in _innermost(report.stack) for part in WAITING)
        )
    )
    return busy if len(busy) < len(reports) else ()


def _innermost(stack: str) -> str:
    """The file of a stack's last call, with forward slashes."""
    lines = [line for line in stack.splitlines() if line.lstrip().startswith("File ")]
    return lines[-1].replace("\\", "/") if lines else ""


def shown(stack: str, *, calls: int = 3) -> str:
    """A stack's last calls in one line, the innermost first: `wait (queue.py:171) < share (rows.py:80)`."""
    found = []
    for line in reversed(stack.splitlines()):
        if line.lstrip().startswith("File "):
            path, number, name = (part.strip() for part in line.strip().split(",")[:3])
            file = path.removeprefix("File ").strip('"').rpartition("/")[2]
            found.append(f"{name.removeprefix('in ')} ({file}:{number.removeprefix('line ')})")
    return " < ".join(found[:calls])
