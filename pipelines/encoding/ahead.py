"""Work that is done before it is asked for, in threads, in its order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = 3.0
"""Seconds that a caller who stops early waits for the thread: what it is at may need a lock of this one's."""


def ahead(items: Iterator[T], *, depth: int, name: str) -> Iterator[T]:
    """The same items, made in one thread while the caller works on those before; `depth` at most lie ready.

    What `items` raises is raised here. A caller that stops early stops the thread, and `items` is closed.
    """
    # No executor: its `submit` holds a lock of the whole process, and where the collector closes a generator
    # in the middle of one, another `submit` or a wait for it would never end. These queues may be put to
    # anywhere.
    asked: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    stopped = threading.Event()
    thread = threading.Thread(target=_make, args=(items, asked, made, stopped), name=name, daemon=True)
    thread.start()
    try:
        for _ in range(depth):
            asked.put(True)
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "raised":
                raise value
            asked.put(True)
            yield value
    finally:
        stopped.set()
        asked.put(False)
        thread.join(_PATIENCE)


def _make(
    items: Iterator[Any],
    asked: SimpleQueue[bool],
    made: SimpleQueue[tuple[str, Any]],
    stopped: threading.Event,
) -> None:
    """Makes an item for each that is asked for, until told to stop."""
    try:
        while asked.get() and not stopped.is_set():
            try:
                item = next(items)
            except StopIteration:
                made.put(("end", None))
                return
            except BaseException as error:
                made.put(("raised", error))
                return
            made.put(("item", item))
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def spread(function: Callable[[T], R], items: Iterable[T], *, threads: int, depth: int) -> Iterator[R]:
    """`function` of each item, in their order; with several threads, `depth` items at once at most.

    With one it is called here: a thread more would only wait for this one.
    """
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        coming: deque[Future[R]] = deque()
        try:
            for item in items:
                coming.append(pool.submit(function, item))
                if len(coming) >= depth:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()
