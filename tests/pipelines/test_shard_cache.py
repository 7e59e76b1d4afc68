"""A machine's cache of a remote store: whole entries whoever dies, and nothing in it is trusted."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from cluster.storage import PARTIAL, LocalStorage, Storage
from pipelines import shard_cache
from pipelines.shard_cache import CacheConfig, ShardCache

DATA = bytes(range(256)) * 4096
"""1 MiB."""


class Remote(LocalStorage):
    """A folder that counts its reads as a remote store would be charged for them."""

    def __init__(self, path: Path, pause: float = 0.0) -> None:
        super().__init__(path)
        self.pause, self.log = pause, path / "log"

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        with self.log.open("ab", buffering=0) as file:
            file.write(f"{os.getpid()} {offset} {size}\n".encode())
        time.sleep(self.pause)
        return super().read_range(name, offset, size)

    @property
    def reads(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.tar").write_bytes(DATA)
    return Remote(tmp_path / "store")


def cache(tmp_path: Path, size: int | None = None) -> ShardCache:
    return ShardCache(CacheConfig(folder=str(tmp_path / "cache"), bytes=size))


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob(f"*{PARTIAL}"))


def test_a_range_is_fetched_once_and_read_in_parts(remote: Remote, tmp_path: Path) -> None:
    one = cache(tmp_path)
    for part in ((1000, 10), (4000, 96), (1000, 3096)):
        assert one.read(remote, "a.tar", "v1", (1000, 3096), part) == DATA[part[0] : sum(part)]
    assert (remote.reads, one.requests, one.fetched) == (1, 1, 3096)
    # Another process finds it, and another version is another file.
    assert cache(tmp_path).read(remote, "a.tar", "v1", (1000, 3096), (1000, 8)) == DATA[1000:1008]
    assert remote.reads == 1
    one.read(remote, "a.tar", "v2", (1000, 3096), (1000, 8))
    assert remote.reads == 2
    assert not partials(tmp_path)


def hurry(folder: str, store: str, wrong: object) -> None:
    one, remote = ShardCache(CacheConfig(folder=folder)), Remote(Path(store), pause=0.01)
    for n in (*range(20), *range(20)):
        if one.read(remote, "a.tar", "v", (n * 999, 999), (n * 999 + 5, 90)) != DATA[n * 999 + 5 :][:90]:
            wrong.value += 1  # type: ignore[attr-defined]


def test_workers_at_once_fetch_a_range_once(remote: Remote, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    wrong = context.Value("i", 0)
    given = (str(tmp_path / "cache"), str(remote.path), wrong)
    workers = [context.Process(target=hurry, args=given) for _ in range(4)]
    threads = [threading.Thread(target=hurry, args=given) for _ in range(3)]
    for one in workers:
        one.start()
    for one in threads:
        one.start()
    for one in (*workers, *threads):
        one.join(60)
    assert [process.exitcode for process in workers] == [0] * 4
    assert wrong.value == 0
    assert remote.reads == 20
    assert not partials(tmp_path)


def die_in_fetch(folder: str, store: str, step: int) -> None:
    """Killed in the store's answer, in the write, or in the link."""
    remote = Remote(Path(store))
    if step == 0:
        Remote.read_range = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    if step == 1:

        def half(path: Path, data: bytes) -> int:
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        Path.write_bytes = half  # type: ignore[assignment,method-assign]
    if step == 2:
        os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    ShardCache(CacheConfig(folder=folder)).read(remote, "a.tar", "v", (0, 5000), (0, 10))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_killed_inside_a_fetch_nothing_is_torn_and_nobody_waits(
    remote: Remote, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=die_in_fetch, args=(str(tmp_path / "cache"), str(remote.path), step))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert len(partials(tmp_path)) == (step > 0)

    one, start = cache(tmp_path), time.monotonic()
    assert one.read(remote, "a.tar", "v", (0, 5000), (4000, 1000)) == DATA[4000:5000]
    assert time.monotonic() - start < 5
    # What the dead one left goes once it is old enough to be nobody's.
    one._evict()
    assert len(partials(tmp_path)) == (step > 0)
    monkeypatch.setattr(shard_cache, "STALE", -1.0)
    one._evict()
    assert not partials(tmp_path)
    assert one.used() == 5000


def test_an_entry_that_lost_bytes_is_fetched_again(remote: Remote, tmp_path: Path) -> None:
    one = cache(tmp_path)
    one.read(remote, "a.tar", "v", (0, 5000), (0, 10))
    (entry,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and len(path.name) == 64]
    os.truncate(entry, 100)
    assert cache(tmp_path).read(remote, "a.tar", "v", (0, 5000), (4000, 1000)) == DATA[4000:5000]
    assert remote.reads == 2


def test_it_keeps_its_size_and_what_was_used_last(remote: Remote, tmp_path: Path) -> None:
    one, size = cache(tmp_path, 1 << 20), 1 << 16
    first = (0, size)
    for n in range(1, 60):
        span = (n * 1000, size)
        assert one.read(remote, "a.tar", "v", span, span) == DATA[n * 1000 : n * 1000 + size]
        one._noted.clear()
        one.read(remote, "a.tar", "v", first, (0, 10))  # used all the time
        assert one.used() <= (1 << 20) + 2 * size
    assert remote.reads == 60
    # A file that is open when it is evicted is read to its end.
    entry = one._path(remote, "a.tar", "v", first)
    file = one._files.get(str(entry))
    entry.unlink()
    assert file.read(10, 5) == DATA[10:15]


class Flaky(Remote):
    def read_range(self, name: str, offset: int, size: int) -> bytes:
        self.tries = getattr(self, "tries", 0) + 1
        if self.tries < 3:
            raise ConnectionError("no answer")
        return super().read_range(name, offset, size)


def test_a_store_that_does_not_answer_is_asked_again(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "PAUSE", 0.001)
    flaky = Flaky(remote.path)
    assert cache(tmp_path).read(flaky, "a.tar", "v", (0, 50), (10, 5)) == DATA[10:15]
    monkeypatch.setattr(shard_cache, "TRIES", 2)
    with pytest.raises(ConnectionError):
        cache(tmp_path).read(Flaky(remote.path), "a.tar", "w", (0, 50), (10, 5))
    with pytest.raises(EOFError):
        cache(tmp_path).read(remote, "a.tar", "v", (len(DATA) - 5, 50), (len(DATA) - 5, 50))


def test_a_cache_without_a_size_takes_half_of_what_is_free(tmp_path: Path) -> None:
    free = Storage.at(tmp_path).free()
    assert free is not None
    assert cache(tmp_path).budget == pytest.approx(free / 2, rel=0.05)
    with pytest.raises(ValueError, match="1,048,576 at least"):
        CacheConfig(bytes=1000)
