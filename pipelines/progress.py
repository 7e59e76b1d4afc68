"""A run as it goes, from the runner's events: one row a stage, and the latest sample pictures below.

On a terminal the rows are redrawn in place; elsewhere each thing worth knowing is a line.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Event = dict[str, Any]
State = Literal["waiting", "running", "done", "failed"]
MARKS = {"waiting": "·", "running": "▸", "done": "✓", "failed": "✗"}
WINDOW = 20.0
"""Seconds over which a rate is taken."""
PLAIN_EVERY = 15.0
"""Seconds between two progress lines of a stage where there is no terminal."""
SHOWN_METRICS = 5
FIRST = ("loss", "validation_loss", "kid", "goodput", "share_of_peak", "tflops", "skipped_steps")
"""Metrics that come before others, in this order."""
SHARES = ("goodput", "share_of_peak")
HIDDEN_METRICS = (
    "grad_norm",
    "rival_grad_norm",
    "lr",
    "images_per_second",
    "badput_",
    "loss_by_time/",
    "memory_gib",
    "gpu_utilisation",
    "workers",
    "restarts",
    "checkpoint_",
)
"""Names or their starts. They stand in the report, in MLflow and in Grafana."""
PICTURE_LINES = 12


@dataclass
class StageRow:
    """What is known of one stage."""

    name: str
    state: State = "waiting"
    told: str = ""
    """What stands in place of counts: what the plan says, why it failed, how it ended."""
    done: float = 0
    total: float | None = None
    unit: str = ""
    started: float = 0.0
    ended: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    samples: deque[tuple[float, float]] = field(default_factory=deque)
    """(time, done) within the last `WINDOW` seconds."""

    def progress(self, time: float, done: float, total: float | None, unit: str) -> None:
        if done < self.done:  # a training that lost a worker goes on from its last checkpoint
            self.samples.clear()
        self.done, self.total, self.unit = done, total, unit
        self.samples.append((time, done))
        while len(self.samples) > 2 and self.samples[0][0] < time - WINDOW:
            self.samples.popleft()

    @property
    def rate(self) -> float | None:
        """Units a second; None until two counts are known."""
        if len(self.samples) < 2:
            return None
        (then, before), (now, done) = self.samples[0], self.samples[-1]
        return (done - before) / (now - then) if now > then else None

    def left(self, now: float) -> float | None:
        """Seconds left at the present rate."""
        if not self.rate or self.total is None:
            return None
        return max(0.0, (self.total - self.done) / self.rate - (now - self.samples[-1][0]))

    def counts(self) -> str:
        total = f" of {number(self.total)}" if self.total is not None else ""
        return f"{number(self.done)}{total} {self.unit}".rstrip()


@dataclass
class Board:
    """All rows, brought forward by events."""

    rows: dict[str, StageRow]
    picture: bytes | None = None
    picture_of: str = ""
    notes: list[str] = field(default_factory=list)
    """Lines to be told once; the one who tells them takes them out."""

    def take(self, event: Event) -> None:
        name = event.get("stage")
        kind, time = event["kind"], float(event.get("time") or 0.0)
        if not name:
            if kind == "note":
                self.notes.append(str(event["text"]))
            return
        row = self.rows.setdefault(name, StageRow(name))
        if kind == "stage_start":
            row.state, row.started, row.told = "running", time, ""
        elif kind == "progress":
            row.progress(time, event["done"], event.get("total"), str(event.get("unit") or ""))
        elif kind == "metrics":
            shown = {k: v for k, v in event["values"].items() if isinstance(v, (int, float))}
            row.metrics |= {k: v for k, v in shown.items() if not k.startswith(HIDDEN_METRICS)}
        elif kind == "picture":
            self.picture, self.picture_of = event["png"], f"{name}: {event['name']}"
        elif kind == "note":
            self.notes.append(f"{name}: {event['text']}")
        elif kind == "rejects":
            self.notes.append(f"{name}: {conservation(event)}")
        elif kind == "stage_end":
            row.ended = time
            row.state = "failed" if event.get("error") else "done"
            row.told = str(event.get("error") or "").partition("\n")[0]


class Rows:
    """Live rows on a terminal; use it as a context manager and call it with each event, from any thread."""

    def __init__(self, console: Console, board: Board) -> None:
        from rich.live import Live

        self._console, self._board = console, board
        self._lock = threading.Lock()
        self._now = 0.0
        self._offset = 0.0
        self._drawn: tuple[bytes, int, RenderableType] | None = None
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.picture = None  # the last samples are among the results; the rows stay
        if isinstance(error, KeyboardInterrupt):
            for row in self._board.rows.values():
                if row.state in ("running", "failed"):
                    row.state, row.told = "waiting", f"interrupted at {row.counts()}"
        self._live.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        import time

        with self._lock:
            self._board.take(event)
            if event.get("time"):
                self._offset = float(event["time"]) - time.monotonic()
            notes, self._board.notes = self._board.notes, []
        for note in notes:
            self._console.print(note, markup=False, highlight=False, style="dim")

    def _render(self) -> RenderableType:
        import time

        from rich.console import Group

        with self._lock:
            table = rows_table(self._board, time.monotonic() + self._offset, width=self._console.width)
            picture = self._picture()
        return Group(table, picture) if picture is not None else table

    def _picture(self) -> RenderableType | None:
        """The latest picture, drawn anew only when it or the width has changed."""
        from rich.text import Text

        from pipelines import terminal

        board, width = self._board, self._console.width
        if board.picture is None or self._console.color_system is None:
            return None
        if self._drawn is None or self._drawn[:2] != (board.picture, width):
            row = terminal.row([board.picture], columns=width - 2, lines=PICTURE_LINES)
            self._drawn = (board.picture, width, Text.assemble((board.picture_of + "\n", "dim"), row))
        return self._drawn[2]


class Lines:
    """The same where there is no terminal: starts, ends, notes, and progress every `PLAIN_EVERY` seconds."""

    def __init__(self, console: Console, board: Board) -> None:
        self._console, self._board = console, board
        self._told: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: Event) -> None:
        self._board.take(event)
        for note in self._board.notes:
            self._say(note)
        self._board.notes = []
        name, kind, time = event.get("stage"), event["kind"], float(event.get("time") or 0.0)
        if not name:
            return
        row = self._board.rows[name]
        if kind == "stage_start":
            self._told[name] = time
            self._say(f"{name}: starts")
        elif kind == "progress" and time - self._told.get(name, 0.0) >= PLAIN_EVERY:
            self._told[name] = time
            self._say(f"{name}: {', '.join(part for part in (row.counts(), speed(row, time)) if part)}")
        elif kind == "stage_end":
            took = duration(row.ended - row.started)
            counts = f"{row.counts()}, " if row.total else ""
            word = "" if event.get("state") == "interrupted" else "failed: "
            self._say(f"{name}: {word}{row.told}" if row.told else f"{name}: {counts}done in {took}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def shown(console: Console, stages: Sequence[tuple[str, str]]) -> Rows | Lines:
    """The listener for a run of `stages`: (name, what the plan says; "done" if nothing is to run)."""
    rows = {
        name: StageRow(
            name, state="done" if told == "done" else "waiting", told="" if told == "done" else told
        )
        for name, told in stages
    }
    return Rows(console, Board(rows)) if console.is_terminal else Lines(console, Board(rows))


def rows_table(board: Board, now: float, *, width: int) -> RenderableType:
    """One line a stage: mark, name, bar, counts, rate and time left, latest metrics."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(20, width - 46))
    bar_width = 14 if width >= 80 else 8
    styles = {"waiting": "dim", "running": "bold", "done": "green", "failed": "red"}
    for row in board.rows.values():
        bar: RenderableType = ""
        if row.state == "running":
            total = row.total or None
            bar = ProgressBar(total=total, completed=row.done, width=bar_width, animation_time=now)
        style = styles[row.state]
        told = status(row, now)
        table.add_row(
            f"[{style}]{MARKS[row.state]}",
            f"[{style}]{row.name}",
            bar,
            _plain(told, dim=row.state != "running"),
        )
    return table


def _plain(text: str, *, dim: bool) -> RenderableType:
    from rich.text import Text

    return Text(text, style="dim" if dim else "")


def status(row: StageRow, now: float) -> str:
    """What a row says behind its name."""
    if row.state == "failed":
        return row.told
    if row.state == "waiting":
        return row.told
    if row.state == "done":
        if not row.started:
            return "finished before"
        counts = row.counts() if row.total else ""
        return ", ".join(part for part in (counts, duration(row.ended - row.started)) if part)
    counts = row.counts() if row.samples else "starting"
    names = sorted(row.metrics, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    metrics = "  ".join(figure(name, row.metrics[name]) for name in names[:SHOWN_METRICS])
    return "  ".join(part for part in (counts, speed(row, now), metrics) if part)


def figure(name: str, value: float) -> str:
    """A metric in words: "loss 0.032", "goodput 94 %"."""
    words = name.replace("_", " ")
    return f"{words} {100 * value:.0f} %" if name in SHARES else f"{words} {number(value)}"


def speed(row: StageRow, now: float) -> str:
    """Rate and time left: "103/s, 2 min left"."""
    rate, left = row.rate, row.left(now)
    parts = [f"{number(rate)}/s" if rate else "", f"{duration(left)} left" if left is not None else ""]
    return ", ".join(part for part in parts if part)


def conservation(event: Event) -> str:
    """inputs = committed + rejected (by reason), and + dropped where a filter did."""
    reasons = ", ".join(f"{number(n)} {reason}" for reason, n in sorted((event.get("reasons") or {}).items()))
    rejected = f"{number(event['rejected'])} rejected" + (f" ({reasons})" if reasons else "")
    dropped = f" + {number(event['dropped'])} dropped" if event.get("dropped") else ""
    return f"{number(event['inputs'])} inputs = {number(event['committed'])} committed + {rejected}{dropped}"


def number(value: float | None) -> str:
    """1599 -> "1,599", 0.03217 -> "0.0322", 1234.5 -> "1,234"."""
    if value is None:
        return "?"
    if not math.isfinite(value):
        return str(value)
    if value == int(value) or abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
