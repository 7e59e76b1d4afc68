"""Scoring in a disposable process: what hangs or crashes on an image leaves that image unscored, and no more.

An unscored sample is not kept, so a gate that fails stays shut.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster.child import ChildDied, run_in_child
from pipelines.scorers.scorer import Scores, Unscored

_TRIES = 2
"""Deaths over one item, so that one for want of memory elsewhere is forgiven."""
HOPELESS = 8
"""Items in a row over which the process died, after which there is no point in going on."""
_BATCH = 512
_BYTES = 1 << 26
"""What one process is given at most: items, bytes."""

Score = Callable[[dict[str, Any]], Scores]
Answer = Scores | Unscored


class Fault(Exception):
    """Raised in the child for what the user must mend; comes out as a `ValueError` with the same line."""


class Guarded:
    """Calls `opened(settings)` in a child, and what that gives on each item.

    An exception over an item leaves it unscored, unless it is a `Fault`.
    """

    def __init__(
        self,
        opened: Callable[[dict[str, Any]], Score],
        settings: Mapping[str, Any],
        *,
        seconds: float,
        what: str,
    ) -> None:
        self._call = {
            "module": opened.__module__,
            "function": opened.__qualname__,
            "settings": dict(settings),
            "seconds": seconds,
        }
        self._what = what
        self._dead = 0

    def __call__(self, items: Sequence[dict[str, Any]]) -> list[Answer]:
        """One answer an item, in order.

        Raises:
            ValueError: it cannot be opened, met a `Fault`, or died over `HOPELESS` items in a row.
        """
        return [answer for batch in _batches(items) for answer in self._answers(batch)]

    def _answers(self, items: Sequence[dict[str, Any]]) -> list[Answer]:
        answers: list[Answer] = []
        strikes = 0
        while len(answers) < len(items):
            told = {**self._call, "items": list(items[len(answers) :])}
            died: ChildDied | None = None
            try:
                results = run_in_child(answer, told)
            except ChildDied as death:
                died, results = death, death.results
                if death.reason.startswith("Fault: "):
                    raise ValueError(death.reason.removeprefix("Fault: ")) from None
            if not results:
                raise ValueError(f"{self._what} cannot be opened: {died.reason if died else 'no answer'}.")
            made = [Unscored(r["unscored"]) if "unscored" in r else r["scores"] for r in results[1:]]
            answers += made
            if made:
                self._dead = strikes = 0
            if died and len(answers) < len(items):
                strikes += 1
                if strikes == _TRIES:
                    why = "timed out" if died.reason == f"signal {int(signal.SIGALRM)}" else died.reason
                    answers.append(Unscored(why))
                    strikes, self._dead = 0, self._dead + 1
                    if self._dead == HOPELESS:
                        raise ValueError(f"{self._what} died over {HOPELESS} images in a row ({why}).")
        return answers


def answer(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """In the child: {} once it is open, then {"scores"} or {"unscored"} for each item."""
    score = getattr(importlib.import_module(call["module"]), call["function"])(call["settings"])
    yield {}
    for item in call["items"]:
        # Without a handler the alarm ends the process, in native code too.
        signal.setitimer(signal.ITIMER_REAL, call["seconds"])
        try:
            result = {"scores": score(item)}
        except Fault:
            raise
        except Exception as error:
            result = {"unscored": described(error)}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        yield result


def described(error: BaseException) -> str:
    """An exception in one line: its kind and the first line of what it says."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _batches(items: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for item in items:
        weight = sum(len(value) for value in item.values() if isinstance(value, bytes))
        if batch and (len(batch) == _BATCH or size + weight > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += weight
    if batch:
        yield batch
