"""What a command does that is told to end: trainings make safe what they have, and it says how to go on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN = 75
"""Exit status (EX_TEMPFAIL) of a run that was told to end (SIGTERM): the same command goes on from there."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """The process was told to end, and not from the keyboard."""

    status = AGAIN


@contextlib.contextmanager
def politely(executor: Any) -> Iterator[None]:
    """Within the block SIGTERM interrupts as Ctrl-C does, and a training in this process first writes a
    checkpoint, once; a second signal, or the end of the grace, ends it as it stands.

    Raises:
        Terminated: SIGTERM came, whatever was raised because of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        from pipelines.runner.execute import grace

        told.append(number)
        if len(told) == 1 and getattr(executor, "training", False):
            executor.pause(0)
            late = threading.Timer(grace(), os.kill, (os.getpid(), number))
            late.daemon = True
            late.start()
            timers.append(late)
            return
        raise Terminated if told[0] == signal.SIGTERM else KeyboardInterrupt

    timers: list[threading.Timer] = []
    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt as error:
        if told and told[0] == signal.SIGTERM and not isinstance(error, Terminated):
            raise Terminated(*error.args) from error
        raise
    finally:
        for late in timers:
            late.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
