from __future__ import annotations

import gc
import io
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.encoding.ahead import ahead, spread
from pipelines.encoding.pictures import Sizing, batches, shrink


@dataclass
class Picture:
    key: str
    members: dict[str, bytes]


def picture(n: int, width: int = 16, height: int = 16) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)


def record(n: int, **size: int) -> Any:
    data = io.BytesIO()
    Image.fromarray(picture(n, **size)).save(data, "PNG")
    return Picture(f"k{n}", {"image": data.getvalue()})


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_full_in_order_and_the_last_image_fills_up(threads: int) -> None:
    sizing = Sizing(factor=4, several=False, also=(8,))
    found = list(batches((record(n) for n in range(7)), 3, sizing, threads=threads))
    assert [batch.keys for batch in found] == [["k0", "k1", "k2"], ["k3", "k4", "k5"], ["k6"]]
    for n in range(9):
        images = found[n // 3].images
        assert np.array_equal(images[None][n % 3].numpy(), picture(min(n, 6)))
        assert np.array_equal(images[8][n % 3].numpy(), shrink(picture(min(n, 6)), (8, 8)))


def test_shrinking_is_antialiased_and_keeps_means() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 200  # every second column: gone at half the size, not kept or aliased
    small = shrink(stripes, (16, 16))
    assert small[:, 2:-2].min() >= 98
    assert small[:, 2:-2].max() <= 102


def test_the_middle_is_kept_where_the_shape_changes() -> None:
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, 8:24] = 255
    assert shrink(image, (8, 8)).min() > 230


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((64, 64), 32, (32, 32)), ((96, 48), 32, (48, 24)), ((80, 48), 48, (60, 36)), ((112, 32), 32, (56, 16))],
)
def test_sizes_shrink_by_area_to_multiples_of_the_factor(
    size: tuple[int, int], side: int, expected: tuple[int, int]
) -> None:
    assert Sizing(factor=4, several=True, resolution=64).shrunk(size, side) == expected


def test_what_does_not_go_is_said() -> None:
    with pytest.raises(ValueError, match="16 px: name smaller"):
        list(batches([record(0)], 2, Sizing(factor=4, several=False, also=(16,))))
    with pytest.raises(ValueError, match="k0 is 18 x 16 px, not a multiple of the autoencoder's factor 4"):
        list(batches([record(0, width=18)], 2, Sizing(factor=4, several=False)))
    with pytest.raises(ValueError, match="k1 differs in size"):
        list(batches([record(0), record(1, width=20)], 2, Sizing(factor=4, several=False)))


def test_only_so_many_lie_ready() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(100):
            made.append(n)
            yield n

    found = ahead(numbers(), depth=3)
    assert [next(found) for _ in range(4)] == [0, 1, 2, 3]
    found.close()  # type: ignore[attr-defined]
    assert len(made) <= 8


def test_errors_come_through_and_threads_end() -> None:
    closed: list[bool] = []

    def failing() -> Iterator[int]:
        try:
            yield 1
            raise KeyError("gone")
        finally:
            closed.append(True)

    before = threading.active_count()
    with pytest.raises(KeyError, match="gone"):
        list(ahead(ahead(failing(), depth=2), depth=2))
    early = ahead(ahead(iter(failing()), depth=1), depth=1)
    next(early)
    early.close()  # type: ignore[attr-defined]
    assert closed == [True, True]
    assert threading.active_count() == before


def test_the_collector_may_close_it_anywhere() -> None:
    """Also while this thread holds the lock under which executors take work."""
    from concurrent.futures import thread as executors

    def items() -> Iterator[int]:
        yield from spread(lambda n: n, itertools.count(), threads=2, depth=4)

    found = ahead(ahead(items(), depth=2), depth=2)
    assert next(found) == 0
    cycle: list[object] = [found]
    cycle.append(cycle)
    del found, cycle
    ended = threading.Event()

    def collect() -> None:
        with executors._global_shutdown_lock:  # type: ignore[attr-defined]
            gc.collect()
        ended.set()

    threading.Thread(target=collect, daemon=True).start()
    assert ended.wait(60), "it waits for a lock that its own thread holds"


def test_spread_keeps_the_order() -> None:
    found = spread(lambda n: n * n, range(50), threads=4, depth=6)
    assert list(found) == [n * n for n in range(50)]
