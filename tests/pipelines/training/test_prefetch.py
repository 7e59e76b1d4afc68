from __future__ import annotations

import contextlib
import itertools
import threading
import time

import pytest

from pipelines.training.prefetch import prefetched


def test_gives_everything_in_order() -> None:
    assert list(prefetched(range(50), lambda n: n * n, ahead=3)) == [n * n for n in range(50)]


def test_is_ahead_by_no_more_than_it_was_told() -> None:
    made: list[int] = []
    with contextlib.closing(prefetched(itertools.count(), lambda n: made.append(n) or n, ahead=3)) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 10
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        # One taken, three ready, one in hand.
        assert made == [0, 1, 2, 3, 4]


def test_closing_ends_the_thread() -> None:
    items = prefetched(itertools.count(), lambda n: n, ahead=2)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_error_comes_in_its_place() -> None:
    items = prefetched([2, 1, 0, 5], lambda n: 2 // n, ahead=8)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ZeroDivisionError):
        next(items)
