"""A worker's sign of life: how far it is, told by a thread of its own; and what it hears in return.

The training only writes down two numbers at each step, and asks for a flag.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

from cluster.mailbox import GangStopped, Reply, Report

BEAT = 1.0
"""Seconds between two reports."""
BEATS = 256
"""A second, of all workers together, at most."""
ALONE = 60.0
"""Seconds without an answer after which a worker ends: its driver is gone, another may have taken over."""
HURRY = 10.0
"""Seconds that the training has to end by itself once nobody wants it."""

TOLD = threading.Event()
"""Set when this process is told to end (SIGTERM)."""


class Gone(Exception):
    """The other end will never answer again."""


def on_sigterm(number: int, frame: FrameType | None) -> None:
    """The worker makes safe what it has, instead of ending at once."""
    TOLD.set()


class Pulse:
    """Runs beside a worker's training from `start` to `close`."""

    def __init__(
        self,
        send: Callable[[Report], Reply],
        *,
        rank: int,
        attempt: int,
        world: int = 1,
        leaving: Callable[[], bool] = lambda: False,
        end: Callable[[int], object] = os._exit,
        interval: float = BEAT,
    ) -> None:
        """
        Args:
            send: tells the mailbox; raises `Gone` where there is none any more, and anything else where it
                cannot be reached for the moment.
            leaving: whether this worker's machine is about to be taken away; asked at each report.
            end: ends the process; what a thread of it writes then is torn, as after a kill.
        """
        self._send, self._leaving, self._end = send, leaving, end
        self._rank, self._attempt = rank, attempt
        self._interval = max(interval, world / BEATS)
        self._training = threading.get_ident()
        self._done = self._steps = 0
        self._busy = 0.0
        self._phase = self._stack = ""
        self._stopping = self._unwanted = False
        self._heard = time.monotonic()
        self._since: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> Pulse:
        """Call it in the thread that trains."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Tells once more how far it came."""
        self._closed.set()
        self._thread.join(self._interval + 5.0)

    def beat(self, done: int, busy: float = 0.0) -> None:
        """A step has ended; `busy` seconds of it were its own work.

        Raises:
            GangStopped: nobody wants this worker any more.
        """
        self._done = done
        self._busy += busy
        self._steps += 1
        if self._unwanted:
            raise GangStopped("the gang was given up, or goes on elsewhere.")

    def phase(self, name: str) -> None:
        """What it does beside steps, that may take long; empty when that is over."""
        self._phase = name

    def stopping(self) -> bool:
        return self._stopping or TOLD.is_set()

    def _run(self) -> None:
        while not self._closed.wait(self._interval):
            self._tell()
        if not self._unwanted:
            self._tell()

    def _tell(self) -> None:
        report = Report(
            rank=self._rank,
            attempt=self._attempt,
            done=self._done,
            steps=self._steps,
            busy=self._busy,
            phase=self._phase,
            stack=self._stack,
        )
        self._stack = ""
        try:
            reply = self._send(report)
        except Gone:
            self._leave()
            return
        except Exception:
            if time.monotonic() - self._heard > ALONE:
                self._leave()
            return
        self._heard = time.monotonic()
        if reply.stack:
            self._stack = self._where()
        if not self._stopping:
            self._stopping = reply.stopping or self._leaving()
        if not reply.wanted:
            self._unwanted = True
            self._since = self._since or self._heard
            if self._heard - self._since > HURRY:
                self._leave()

    def _leave(self) -> None:
        """Ends the process where the training still goes on in it."""
        self._unwanted = True
        if not self._closed.is_set():
            self._end(1)

    def _where(self) -> str:
        """The training thread's innermost calls, the last one last."""
        frame = sys._current_frames().get(self._training)
        if frame is None:
            return "it has no training thread"
        return "".join(traceback.format_stack(frame)[-12:])
