"""This process's nursery (`cluster.nursery`), and its children: processes that start in milliseconds."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.frames import Unpacker, packed

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")
"""The environment that a child is given; all else, credentials first, stays here."""
_STARTS = 3
_PIECE = 1 << 18


class ChildFailed(RuntimeError):
    """The function raised an exception, or no child can be started."""


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    """Exit status; minus the signal that killed it."""
    peak: int
    """Bytes of memory that it had resident at most, what it shares with the nursery included."""
    seconds: float
    """Processor time that it took."""


class Child:
    """A forked process, and what is on the way to and from it."""

    def __init__(self, nursery: Nursery, task: dict[str, Any], memory: int | None) -> None:
        self.memory = memory
        self.stream, self.status = nursery.child()
        self.stream.setblocking(False)
        self.out: deque[memoryview] = deque([memoryview(packed(task))])
        self.unpacker = Unpacker()

    def send(self, frame: bytes) -> None:
        self.out.append(memoryview(frame))

    def exchange(self, seconds: float) -> tuple[list[Any], str | None]:
        """Answers that came within so long; "" if the child ended, "nonsense" if what it sent is no frame."""
        self._push()
        poll = select.poll()
        poll.register(self.stream, select.POLLIN | (select.POLLOUT if self.out else 0))
        events = poll.poll(1000 * seconds)
        if not events:
            return [], None
        if events[0][1] & select.POLLOUT:
            self._push()
        try:
            data = self.stream.recv(_PIECE)
        except BlockingIOError:
            return [], None
        except ConnectionResetError:
            data = b""
        answers, nonsense = self.unpacker.feed(data)
        return answers, "nonsense" if nonsense else "" if not data else None

    def _push(self) -> None:
        while self.out:
            try:
                count = self.stream.send(self.out[0])
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                return
            if count == len(self.out[0]):
                self.out.popleft()
            else:
                self.out[0] = self.out[0][count:]

    def end(self) -> Ended:
        """Kills it, if it lives; how it ended."""
        self.stream.close()
        # Half closed: it ends, and what is said of its end still comes.
        with contextlib.suppress(OSError):
            self.status.shutdown(socket.SHUT_WR)
        told = b""
        with contextlib.suppress(OSError):
            while piece := self.status.recv(4096):
                told += piece
        self.status.close()
        # Nothing is told where the nursery died too.
        return Ended(**json.loads(told)) if told else Ended(-signal.SIGKILL, 0, 0.0)


class Nursery:
    """This process's own nursery for some modules; a dead one is replaced."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.modules, self.lock = modules, threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None

    def child(self) -> tuple[socket.socket, socket.socket]:
        """Forks one: its stream of frames, and what says how it ended and ends it."""
        with self.lock:
            for _ in range(_STARTS):
                if self.control is None:
                    self._start()
                assert self.control
                ours, theirs = socket.socketpair()
                status, told = socket.socketpair()
                try:
                    socket.send_fds(self.control, [b"c"], [theirs.fileno(), told.fileno()])
                except OSError:
                    for end in (ours, status):
                        end.close()
                    self.close()
                else:
                    return ours, status
                finally:
                    theirs.close()
                    told.close()
        raise ChildFailed("the nursery of disposable processes ends as soon as it is started.")

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        environment = {name: value for name, value in os.environ.items() if name in KEPT} | {
            "PYTHONPATH": os.pathsep.join([root, *(path for path in sys.path if path)]),
            "OMP_NUM_THREADS": "1",
            # An arena a thread would take 64 MiB each of what a child may have.
            "MALLOC_ARENA_MAX": "1",
        }
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cluster.nursery", *self.modules],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment, start_new_session=True,
            )  # fmt: skip
        if not self.control.recv(64):
            code = self.process.wait()
            self.close()
            raise ChildFailed(f"the nursery of disposable processes did not start: code {code}, see above.")

    def close(self) -> None:
        if self.control:
            self.control.close()
        if self.process:
            self.process.wait()
        self.control = self.process = None


def nursery(modules: tuple[str, ...]) -> Nursery:
    """This process's for these modules."""
    return _nursery(os.getpid(), modules)


@functools.cache
def _nursery(process: int, modules: tuple[str, ...]) -> Nursery:
    found = Nursery(modules)
    atexit.register(found.close)
    return found
