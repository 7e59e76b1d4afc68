"""Items made ahead in a thread, so that whoever uses them does not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from pipelines.training.tasks.task import Ordered

Source = TypeVar("Source")
Item = TypeVar("Item")
Place = tuple["np.ndarray", "np.ndarray"]
"""Positions in the stream, and the samples there."""


FETCHERS = 8
"""Requests of a worker to a remote store at once."""
PATIENCE = 3.0
"""Seconds that closing waits for the thread: what it is at may need a lock that the closing one holds."""


def prefetched(
    sources: Iterable[Source],
    make: Callable[[Source], Item],
    *,
    ahead: int,
    threads: int = 1,
    begin: Callable[[], None] = lambda: None,
) -> Generator[Item]:
    """`make` of each source in order, up to `ahead` of them before they are asked for, and one more a thread.

    What `make` and `sources` raise is raised here, in its place. Closing the generator ends the threads,
    each of which began with `begin`, and closes `sources` in the last of them.
    """
    line = _Line(sources, ahead + threads)

    def run() -> None:
        try:
            begin()
            while line.work(make):
                pass
        except BaseException as error:
            line.fail(error)
        finally:
            line.leave()

    line.workers = threads
    started = [threading.Thread(target=run, name="prefetch", daemon=True) for _ in range(threads)]
    for thread in started:
        thread.start()
    try:
        while (item := line.take()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        line.close()
        deadline = time.monotonic() + PATIENCE
        for thread in started:
            thread.join(max(0.0, deadline - time.monotonic()))


def fetched(task: Ordered, places: Iterable[Place], *, ahead: int) -> Generator[Place]:
    """The same places, each once its samples are on this machine."""

    def fetch(place: Place) -> Place:
        task.fetch(place[1])
        return place

    return prefetched(places, fetch, ahead=max(1, ahead), threads=FETCHERS)


@dataclass(frozen=True)
class _Raised:
    error: BaseException


_END: Any = object()


class _Line:
    """Items in order, which several threads make."""

    def __init__(self, sources: Iterable[Any], room: int) -> None:
        # No executor: its `submit` holds a lock of the whole process, and where the collector closes a
        # generator in the middle of one, another `submit` would never end.
        self.sources, self.room, self.workers = sources, room, 0
        self._next = iter(sources)
        self._drawing = threading.Lock()
        self._changed = threading.Condition()
        self._ready: dict[int, Any] = {}
        self._begun = self._taken = 0
        self._closed = self._over = False

    def work(self, make: Callable[[Any], Any]) -> bool:
        """Makes the next item; False if there is none."""
        with self._drawing:  # so that the sources come in order, and one by one
            with self._changed:
                while not self._closed and not self._over and self._begun >= self._taken + self.room:
                    self._changed.wait()
                if self._closed or self._over:
                    return False
                number = self._begun
                self._begun += 1
            source = _END
            try:
                source = next(self._next, _END)
            except BaseException as error:
                self._put(number, _Raised(error), last=True)
                return False
            if source is _END:
                self._put(number, _END, last=True)
                return False
        try:
            self._put(number, make(source))
        except BaseException as error:
            self._put(number, _Raised(error), last=True)
            return False
        return True

    def take(self) -> Any:
        with self._changed:
            while self._taken not in self._ready:
                self._changed.wait()
            item = self._ready.pop(self._taken)
            self._taken += 1
            self._changed.notify_all()
        return item

    def fail(self, error: BaseException) -> None:
        """Before anything was made: it comes first."""
        with self._changed:
            number, self._begun = self._begun, self._begun + 1
        self._put(number, _Raised(error), last=True)

    def leave(self) -> None:
        """Called by each thread at its end."""
        with self._changed:
            self.workers -= 1
            last = not self.workers
        close = getattr(self.sources, "close", None)
        if last and close is not None:
            close()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _put(self, number: int, item: Any, *, last: bool = False) -> None:
        with self._changed:
            self._ready[number] = item
            self._over = self._over or last
            self._changed.notify_all()
