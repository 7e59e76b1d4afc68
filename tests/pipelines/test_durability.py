"""Drivers killed at chosen storage operations, and two at once: one result, and nothing done twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import LocalStorage
from pipelines.shards import read_index
from tests.pipelines.toys import World

FORK = multiprocessing.get_context("fork")
OPERATIONS = ("put_if_absent", "replace", "delete", "delete_folder")


def die_at(step: int, moment: str) -> None:
    """Kills this process at its `step`-th change of a store: before it, within its writing, or after it."""
    count = 0

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(self: LocalStorage, *arguments: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == step and moment == "within" and len(arguments) == 2:
                data = arguments[1] if isinstance(arguments[1], bytes) else arguments[1].read_bytes()
                self._write(self._path(arguments[0]), data[: len(data) // 2]).open("rb")
            if count == step and moment != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(self, *arguments, **more)
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return operation

    for name in OPERATIONS:
        setattr(LocalStorage, name, deadly(getattr(LocalStorage, name)))


def drive(root: Path, step: int | None, moment: str, ready: Any = None) -> None:
    if step is not None:
        die_at(step, moment)
    if ready is not None:
        ready.wait()
    World(root).run(patience=3.0)


def attempt(world: World, step: int | None, moment: str = "before") -> bool:
    """One driver in a process of its own; whether it came to the end. Checks that it repeated no shard."""
    finished = {
        (folder.name, key)
        for folder in (world.root / "store").glob("*/*")
        for index in folder.glob("*.parquet")
        for key in read_index(LocalStorage(folder), index.stem).keys
    }
    kinds = {folder.name: folder.parent.name for folder in (world.root / "store").glob("*/*")}
    before = len(world.log_from())
    driver = FORK.Process(target=drive, args=(world.root, step, moment))
    driver.start()
    driver.join(60)
    assert driver.exitcode in (0, -signal.SIGKILL)
    made = [words for words in world.log_from(before) if words[0] == "numbers"]
    repeated = {key for _, key in made} & {key for folder, key in finished if kinds[folder] == "numbers"}
    assert not repeated
    return driver.exitcode == 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    world = World(tmp_path_factory.mktemp("unbroken"))
    world.numbers(*range(12))
    world.run()
    return world.files()


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_killed_again_and_again_along_one_run(tmp_path: Path, unbroken: dict[str, str], moment: str):
    """Each driver dies a little later than the one before; the last one finds all done."""
    world = World(tmp_path)
    world.numbers(*range(12))
    steps = [3, 4, 6, 9, 13, 20]
    ended = [attempt(world, step, moment) for step in steps]
    assert ended[0] is False
    while not attempt(world, 10, moment):
        pass
    assert world.files() == unbroken
    assert world.run() == []


@pytest.mark.chaos
@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_killed_at_every_change_of_the_store(tmp_path: Path, unbroken: dict[str, str], moment: str):
    for step in range(1, 200):
        world = World(tmp_path / str(step))
        world.numbers(*range(12))
        if attempt(world, step, moment):
            break
        assert attempt(world, None)
        assert world.files() == unbroken
    assert step > 40


def test_two_drivers_end_in_one_result(tmp_path: Path, unbroken: dict[str, str]):
    world = World(tmp_path)
    world.numbers(*range(12))
    ready = FORK.Barrier(2)
    drivers = [FORK.Process(target=drive, args=(tmp_path, None, "", ready)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
    assert [driver.exitcode for driver in drivers] == [0, 0]
    assert world.files() == unbroken
    assert [w for w in world.log_from() if w[0] == "pass"] == [["pass", str(n)] for n in range(1, 6)]
    assert world.run() == []


def slow(root: Path) -> None:
    World(root, {"learn": {"pause": 0.2}}).run(patience=1.0)


def test_a_suspended_driver_is_overtaken_and_follows(tmp_path: Path, unbroken: dict[str, str]):
    world = World(tmp_path)
    world.numbers(*range(12))
    first = FORK.Process(target=slow, args=(tmp_path,))
    first.start()
    while ["pass", "2"] not in world.log_from():
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGSTOP)  # pyright: ignore[reportArgumentType]
    start = time.monotonic()
    slow(tmp_path)
    assert time.monotonic() - start > 1.0, "the second waits for the first one's patience"
    os.kill(first.pid, signal.SIGCONT)  # pyright: ignore[reportArgumentType]
    first.join(60)
    assert first.exitcode == 0
    assert world.files() == unbroken
    leases = sorted(path.name for path in tmp_path.rglob("lease/*.json"))
    assert "000002.json" in leases


def test_a_killed_driver_keeps_nobody_waiting(tmp_path: Path):
    world = World(tmp_path)
    world.numbers(*range(12))
    first = FORK.Process(target=slow, args=(tmp_path,))
    first.start()
    while ["pass", "3"] not in world.log_from():
        time.sleep(0.02)
    first.kill()
    first.join()
    start, before = time.monotonic(), len(world.log_from())
    world.run(patience=60.0)
    assert time.monotonic() - start < 20
    assert next(w for w in world.log_from(before) if w[0] == "pass")[1] in ("4", "3")
