"""A process that forks disposable children, for bytes that nobody vouches for: `python -m cluster.nursery`.

It has one thread, no credentials and no Ray connection, and has imported what its children need, so that a
fresh child costs milliseconds. What it is sent comes on socket 0: for each child a byte with two sockets, one
for the child's frames and one that says how it ended; closing the latter ends the child, closing socket 0
all of them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import queue
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster.frames import packed, received

_FILES = 32
"""Open files of a child at most."""
_STACK = 1 << 20


def main(modules: list[str]) -> None:
    """Imports `modules`, says that it is ready, and forks children as they are asked for."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    living: dict[int, socket.socket] = {}
    control.sendall(b"ready\n")
    while True:
        for key, _ in selector.select():
            if key.fileobj is control:
                asked, files, *_ = socket.recv_fds(control, 1, 2)
                if not asked:
                    for process in living:
                        os.kill(process, signal.SIGKILL)
                    return
                data, status = files
                process = os.fork()
                if process == 0:
                    _be_born(data)
                os.close(data)
                living[process] = socket.socket(fileno=status)
                selector.register(living[process], selectors.EVENT_READ, process)
            elif key.fileobj == woken:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
                _reap(living, selector)
            elif key.data in living:
                # Closed by whoever asked for the child: it is not wanted any more.
                selector.unregister(living[key.data])
                os.kill(key.data, signal.SIGKILL)


def _reap(living: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while living:
        process, code, usage = os.wait4(-1, os.WNOHANG)
        if not process:
            return
        status = living.pop(process)
        with contextlib.suppress(KeyError):
            selector.unregister(status)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        told = {
            "code": os.waitstatus_to_exitcode(code),
            "peak": peak,
            "seconds": usage.ru_utime + usage.ru_stime,
        }
        with contextlib.suppress(OSError):
            status.sendall(json.dumps(told).encode())
        status.close()


def _be_born(data: int) -> None:
    """What the forked process does; it never returns into the nursery's code."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for n in (0, 1, 2):
            os.dup2(nowhere, n)
        os.dup2(data, 3)
        os.closerange(4, 1 << 16)
        sys.dont_write_bytecode = True
        _serve(socket.socket(fileno=3))
        code = 0
    finally:
        os._exit(code)


def _serve(stream: socket.socket) -> None:
    """The first frame tells what to call with what and within which limits, each other one is an item."""
    frames = received(stream)
    task = next(frames)
    threads = task["threads"]
    try:
        opened: Any = importlib.import_module(task["module"])
        for part in task["function"].split("."):
            opened = getattr(opened, part)
        function = opened(task["argument"])
        clock = _Clock(task["seconds"])
        threading.stack_size(_STACK)
        pool = _started(threads) if threads > 1 else None
        _limit(task["memory"])
    except Exception as error:
        stream.sendall(packed({"error": _line(error)}))
        return
    if pool is None:
        for item in frames:
            answer = _answer(function, clock, item)
            stream.sendall(packed(answer))
            if "result" not in answer:
                return
        return
    answers: queue.SimpleQueue[Future[dict[str, Any]] | None] = queue.SimpleQueue()
    sender = threading.Thread(target=_send_all, args=(stream, answers), daemon=True)
    sender.start()
    for item in frames:
        answers.put(pool.submit(_answer, function, clock, item))
        del item
    answers.put(None)
    sender.join()


def _started(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads are there already: later none may be started."""
    pool = ThreadPoolExecutor(threads)
    together = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(together.wait)
    together.wait()
    return pool


def _send_all(stream: socket.socket, answers: queue.SimpleQueue[Future[dict[str, Any]] | None]) -> None:
    """In the order in which the items came, whichever is ready first."""
    while (future := answers.get()) is not None:
        answer = future.result()
        with contextlib.suppress(BrokenPipeError):
            stream.sendall(packed(answer))
        if "result" not in answer:
            os._exit(1)


def _answer(function: Callable[[Any], Any], clock: _Clock, item: Any) -> dict[str, Any]:
    with clock:
        try:
            return {"result": function(item)}
        except MemoryError:
            return {"died": "memory"}
        except Exception as error:
            return {"error": _line(error)}


def _line(error: Exception) -> str:
    line = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {line}"


class _Clock:
    """Ends the process where an item takes too much processor time, native code too: SIGPROF has no handler.

    With several at once the time is all of theirs, and starts again with each that begins or ends: answers
    are in order and few are on their way, so that one that never ends is soon alone.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.running, self.lock = seconds, 0, threading.Lock()

    def __enter__(self) -> None:
        self._count(1)

    def __exit__(self, *_: object) -> None:
        self._count(-1)

    def _count(self, change: int) -> None:
        with self.lock:
            self.running += change
            signal.setitimer(signal.ITIMER_PROF, self.seconds * self.running)


def _limit(memory: int | None) -> None:
    """No files, no processes, and so much memory beside what is taken already."""
    try:
        import resource
    except ImportError:
        return
    pages = Path("/proc/self/statm")
    if memory is not None and pages.exists():
        used = int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(AttributeError, ValueError, OSError):
        # Root is exempt from it.
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


if __name__ == "__main__":
    main(sys.argv[1:])
