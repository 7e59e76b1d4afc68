"""Work that is done before it is asked for, in threads, in its order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipelines.training.prefetch import prefetched

T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterator[T], *, depth: int) -> Iterator[T]:
    """The same items, made in a thread while the caller works on those before; `depth` at most lie ready."""
    return prefetched(items, lambda item: item, ahead=depth)


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
