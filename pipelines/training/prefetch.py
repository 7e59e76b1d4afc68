"""Items made ahead in a thread, so that whoever uses them does not wait."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Source = TypeVar("Source")
Item = TypeVar("Item")


PATIENCE = 3.0
"""Seconds that closing waits for the thread: what it is at may need a lock that the closing one holds."""


def prefetched(
    sources: Iterable[Source],
    make: Callable[[Source], Item],
    *,
    ahead: int,
    begin: Callable[[], None] = lambda: None,
) -> Generator[Item]:
    """`make` of each source in order, up to `ahead` of them before they are asked for.

    What `make` and `sources` raise is raised here. Closing the generator ends the thread, which began with
    `begin`, and closes `sources` in it.
    """
    # No executor: its `submit` holds a lock of the whole process, and where the collector closes a generator
    # in the middle of one, another `submit` would never end.
    ready: queue.Queue[Item | BaseException] = queue.Queue(maxsize=ahead)
    stop, end = threading.Event(), StopIteration()

    def put(item: Item | BaseException) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def run() -> None:
        try:
            begin()
            for source in sources:
                if not put(make(source)):
                    return
            put(end)
        except BaseException as error:
            put(error)
        finally:
            close = getattr(sources, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=run, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(PATIENCE)
