from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.storage import LocalStorage, Storage
from pipelines.training import checkpoints
from pipelines.training.checkpoints import Writer
from tests.pipelines import tiny
from tests.pipelines.training.checkpoints.gangs import equal, everything, mark, tensors, writers, written

PLACES = (8, 16, 24)
"""Of the checkpoints that a process writes until it is killed: the third makes the first go."""


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


class Deadly(LocalStorage):
    """Kills its process at the `at`-th operation: before it, after it, or with half of it on the disk.

    Looks for parts are not counted: how many there are is a matter of time."""

    def __init__(self, path: Path, *, at: int = -1, how: str = "before") -> None:
        super().__init__(path)
        self.at, self.how, self.count, self.lock = at, how, 0, threading.Lock()

    def _operation(self, work: Callable[[], Any], half: Callable[[], None]) -> Any:
        with self.lock:
            self.count += 1
            mine = self.count == self.at
        if mine:
            {"before": lambda: None, "half": half, "after": work}[self.how]()
            os.kill(os.getpid(), signal.SIGKILL)
        return work()

    def put_if_absent(self, name: str, source: Any) -> bool:
        def half() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / f".{name}.partial").write_bytes(bytes(source)[: len(source) // 2])

        return self._operation(lambda: LocalStorage.put_if_absent(self, name, source), half)

    def delete(self, name: str) -> None:
        self._operation(lambda: LocalStorage.delete(self, name), lambda: None)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self._operation(lambda: LocalStorage.read_range(self, name, offset, size), lambda: None)


def write_all(storage: LocalStorage, world: int, safe: Any) -> None:
    """The checkpoints of `PLACES`; `safe` is how far a training may count on them."""
    ranks = writers(storage, world)
    for place in PLACES:

        def done(place: int = place) -> None:
            safe.value = place

        written(ranks, mark(place), done)


def operations(folder: Path, world: int) -> int:
    storage = Deadly(folder)
    write_all(storage, world, multiprocessing.Value("q", 0))
    return storage.count


def killed(folder: Path, world: int, at: int, how: str) -> None:
    """A process that is killed there; then what it left serves, and who goes on from it cleans up."""
    context = multiprocessing.get_context("fork")
    safe = context.Value("q", 0, lock=False)
    process = context.Process(
        target=lambda: write_all(Deadly(folder, at=at, how=how), world, safe), daemon=True
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, (at, how)

    storage = LocalStorage(folder)
    found = checkpoints.newest(storage, everything)
    assert (found is not None) or safe.value == 0, (at, how)
    if found is not None:
        assert found.mark.images_seen >= safe.value
        assert equal(found.tensors, tensors(found.mark.images_seen))
        assert found.state == {"at": found.mark.images_seen}
    ranks = writers(storage, world)
    for place in (40, 48):
        written(ranks, mark(place, lease=2))
    assert {name[:12] for name in storage.list()} == {f"{place:012d}" for place in (40, 48)}
    assert equal(checkpoints.read(storage, mark(48, lease=2).name).tensors, tensors(48))


def points(folder: Path, world: int) -> list[tuple[int, str]]:
    count = operations(folder, world)
    assert count >= 4 * len(PLACES)
    return [(at, how) for at in range(1, count + 1) for how in ("before", "half", "after")]


@pytest.mark.parametrize("world", [1, 2])
def test_killed_inside_any_write_it_goes_on_from_a_whole_one(tmp_path: Path, world: int) -> None:
    """At a quarter of the points; all of them are in the test below."""
    for number, (at, how) in enumerate(points(tmp_path / "count", world)):
        if number % 4 == world:
            killed(tmp_path / f"{at}-{how}", world, at, how)


@pytest.mark.chaos
@pytest.mark.parametrize("world", [1, 2])
def test_killed_inside_every_write_it_goes_on_from_a_whole_one(tmp_path: Path, world: int) -> None:
    for at, how in points(tmp_path / "count", world):
        killed(tmp_path / f"{at}-{how}", world, at, how)


def test_a_rank_that_is_gone_costs_the_checkpoint_and_no_more(storage: LocalStorage) -> None:
    first, second = writers(storage, 2)
    written([first, second], mark(8))
    first.patience = 0.1
    written([first], mark(16))  # without the second
    (text,) = first.news()
    assert "16 images could not be written: 1 of 2 workers" in text
    assert {name[:12] for name in storage.list()} == {"000000000008"}


class Full(LocalStorage):
    """Has no space left for a while."""

    full: Callable[[str], bool] = staticmethod(lambda name: False)

    def put_if_absent(self, name: str, source: Any) -> bool:
        if self.full(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().put_if_absent(name, source)


@pytest.mark.parametrize("ending", [".safetensors", ".json"])
def test_without_space_the_older_checkpoint_stays_and_the_next_is_tried(tmp_path: Path, ending: str) -> None:
    storage = Full(tmp_path)
    ranks = writers(storage, 1)
    written(ranks, mark(8))
    storage.full = lambda name: name.endswith(ending)
    committed: list[int] = []
    written(ranks, mark(16), lambda: committed.append(16))
    (text,) = ranks[0].news()
    assert "16 images could not be written" in text
    assert "No space left" in text
    assert ranks[0].news() == []
    found = checkpoints.newest(storage, everything)
    assert found is not None
    assert found.mark == mark(8)
    assert {name[:12] for name in storage.list()} == {"000000000008"}
    with pytest.raises(OSError, match="No space left"):
        ranks[0].wait()  # nothing came after it

    storage.full = lambda name: False
    written(ranks, mark(24), lambda: committed.append(24))
    ranks[0].wait()
    assert committed == [24]
    assert ranks[0].news() == []


def test_a_training_without_space_for_a_while_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = tiny.line(tmp_path / "line")
    put = LocalStorage.put_if_absent

    def full(self: LocalStorage, name: str, source: Any) -> bool:
        if name.startswith(f"{32:012d}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(self, name, source)

    monkeypatch.setattr(LocalStorage, "put_if_absent", full)
    session = tiny.session(tmp_path, line)
    tiny.run(tiny.train(images_seen=64, checkpoint_every=16, samples_every=64, validate_every=64), session)
    told = [event["text"] for event in session.events if event["kind"] == "note"]
    assert any("32 images could not be written" in text and "No space left" in text for text in told)

    monkeypatch.setattr(LocalStorage, "put_if_absent", lambda *_: full(_[0], f"{32:012d}", b""))
    with pytest.raises(OSError, match="No space left"):
        tiny.run(tiny.train(images_seen=72), tiny.session(tmp_path, line, output="longer", lease=2))


def test_other_errors_are_raised_by_the_next_call(storage: LocalStorage) -> None:
    def fail() -> None:
        raise KeyError("not a matter of space")

    (writer,) = writers(storage, 1)
    written([writer], mark(8), fail)
    with pytest.raises(KeyError):
        writer.write(mark(16), tensors(16), {})


def test_the_step_does_not_wait_for_the_storage(tmp_path: Path) -> None:
    """Nor does what it changes meanwhile reach the checkpoint."""
    gate = threading.Event()

    class Slow(LocalStorage):
        def put_if_absent(self, name: str, source: Any) -> bool:
            gate.wait(30)
            return super().put_if_absent(name, source)

    storage, weight = Slow(tmp_path), torch.zeros(1000, 100)
    writer = Writer(storage)
    for n in (8, 16):
        gate.clear()
        writer.write(mark(n), {"w": weight}, {})
        weight.fill_(n)
        assert writer.busy
        assert storage.list(mark(n).name) == []
        gate.set()
        writer.wait()
        assert not writer.busy
    assert checkpoints.read(storage, mark(8).name).tensors["w"].abs().max() == 0
    assert (checkpoints.read(storage, mark(16).name).tensors["w"] == 8).all()


def test_memory_is_used_again(storage: LocalStorage) -> None:
    (writer,) = writers(storage, 1)
    written([writer], mark(8))
    memory = writer._memory._memory
    written([writer], mark(16))
    assert writer._memory._memory is memory


@pytest.mark.gpu
def test_on_a_gpu_the_values_of_the_moment_are_kept(storage: LocalStorage) -> None:
    weight = torch.zeros(64, 1 << 20, device="cuda")
    writer = Writer(storage)
    for n in range(1, 6):
        weight.fill_(n)
        writer.write(mark(n), {"w": weight, "n": torch.tensor(n)}, {})
        weight.mul_(-1)  # queued behind the copies
        writer.wait()
        assert writer._memory._locked
        assert (checkpoints.read(storage, mark(n).name).tensors["w"] == n).all()


def test_a_zombie_neither_wins_nor_deletes_what_its_successor_wrote(storage: LocalStorage) -> None:
    zombie, successor = writers(storage, 1)[0], writers(storage, 1)[0]
    written([zombie], mark(8))
    for n in (16, 24):
        written([successor], mark(n, lease=2))
    for n in (16, 24, 32, 40):
        written([zombie], mark(n))
    for n in (16, 24):
        assert checkpoints.read(storage, mark(n, lease=2).name).mark.lease == 2
    found = checkpoints.newest(storage, lambda at: at.images_seen <= 24)
    assert found is not None
    assert found.mark == mark(24, lease=2)


def test_storage_at_takes_what_is_written(tmp_path: Path) -> None:
    """A memory view and bytes are one to a store."""
    storage = Storage.at(tmp_path)
    assert storage.put_if_absent("a", memoryview(b"12345")[1:4])
    assert storage.read("a") == b"234"
