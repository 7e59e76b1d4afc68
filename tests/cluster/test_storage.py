"""Storage: whole files or none, one winner of a race, and nothing outside the folder."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.objects import ObjectStorage
from cluster.storage import LocalStorage, Storage


@pytest.fixture(params=["local", "object"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Storage]:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        yield Storage.at(tmp_path / "store")
        return
    import fsspec

    # fsspec's memory has S3's semantics: an object appears whole, and mode="create" fails if it is there.
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    yield ObjectStorage("memory://bucket/store", memory)
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_what_is_put_is_read(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 8192)
    assert storage.put_if_absent("a/b.bin", source)
    assert storage.put_if_absent("a/c.bin", b"123456")
    assert storage.read("a/b.bin") == source.read_bytes()
    assert storage.size("a/b.bin") == 2**21
    assert storage.read_range("a/c.bin", 2, 3) == b"345"
    assert storage.exists("a/c.bin")
    assert not storage.exists("a")
    assert storage.list() == ["a/b.bin", "a/c.bin"]
    assert storage.list("a/c") == ["a/c.bin"]
    assert storage.list("x") == []
    assert storage.folders() == ["a"]
    assert storage.folder("a").read("c.bin") == b"123456"
    assert storage.local("a/c.bin").read_bytes() == b"123456"


def test_a_file_that_is_there_stays(storage: Storage) -> None:
    assert storage.put_if_absent("a", b"first")
    assert not storage.put_if_absent("a", b"second")
    assert storage.read("a") == b"first"
    storage.replace("a", b"third")
    assert storage.read("a") == b"third"
    assert storage.local("a").read_bytes() == b"third"
    storage.delete("a")
    storage.delete("a")
    with pytest.raises(FileNotFoundError):
        storage.read("a")


def test_a_range_past_the_end_is_an_error(storage: Storage) -> None:
    storage.put_if_absent("a", b"12345")
    with pytest.raises(EOFError, match="2 bytes early"):
        storage.read_range("a", 3, 4)


def test_deleting_a_folder_leaves_its_neighbours(storage: Storage) -> None:
    storage.put_if_absent("ab/1", b"")
    storage.put_if_absent("a/2", b"")
    storage.folder("a").delete_folder()
    assert storage.list() == ["ab/1"]
    storage.folder("never").delete_folder()


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "./a", "a\\b", "a\nb", "a\0b", "a/"])
def test_names_stay_in_their_folder(storage: Storage, name: str) -> None:
    for call in (storage.read, storage.folder, storage.local, storage.delete):
        with pytest.raises(ValueError, match="not a name"):
            call(name)
    with pytest.raises(ValueError, match="not a name"):
        storage.put_if_absent(name, b"")


def test_one_thread_wins(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    for round_ in range(20):
        barrier, won = threading.Barrier(8), []

        def put(
            n: int, name: str = f"{round_}", barrier: threading.Barrier = barrier, won: list = won
        ) -> None:
            barrier.wait()
            if storage.put_if_absent(name, b"%d" % n * 1000):
                won.append(n)

        threads = [threading.Thread(target=put, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.read(f"{round_}") == b"%d" % won[0] * 1000
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def _race(folder: str, number: int, start: float, wins: Callable[[tuple[int, int]], None]) -> None:
    storage = Storage.at(folder)
    for n in range(50):
        if storage.put_if_absent(f"{n}", b"%d" % number * 5000):
            wins((n, number))


def test_one_process_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_race, args=(str(tmp_path), n, 0.0, queue.put)) for n in range(4)]
    for worker in workers:
        worker.start()
    won = dict(queue.get(timeout=60) for _ in range(50))
    for worker in workers:
        worker.join()
    assert queue.empty()
    assert len(won) == 50
    for n, number in won.items():
        assert Storage.at(tmp_path).read(f"{n}") == b"%d" % number * 5000


def test_what_is_half_written_is_not_listed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / ".a.0123.partial").write_bytes(b"half")
    assert storage.list() == []
    assert storage.put_if_absent("a", b"whole")
    assert storage.list() == ["a"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "store")
    with pytest.raises(FileNotFoundError):
        storage.put_if_absent("a", tmp_path / "no such file")
    assert list((tmp_path / "store").iterdir()) == []


def test_it_travels(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    storage.put_if_absent("a", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"1"
    assert pickle.loads(pickle.dumps(ObjectStorage("s3://bucket/x"))).url == "s3://bucket/x"
    assert Storage.at(f"file://{tmp_path}").url == storage.url
    assert Storage.at(f"file://{tmp_path}") == storage


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://example.org/x", "not a store"),
        ("pipe://cat", "not a store"),
        ("hdfs://name/x", "not a store"),
        ("s3://", "names a bucket"),
        ("s3://key:secret@bucket/x", "credentials"),
        ("file://host/x", "three slashes"),
    ],
)
def test_other_urls_are_refused(url: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as refusal:
        Storage.at(url)
    assert "secret" not in str(refusal.value)


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    free = Storage.at(tmp_path / "a" / "b").free()
    assert free is not None
    assert free > 0


def test_half_written_files_are_told_apart(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    storage.put_if_absent("a/1", b"first")
    (tmp_path / "a" / ".2.x.partial").write_bytes(b"hal")
    assert {name: size for name, (size, _) in storage.files().items()} == {"a/1": 5}
    assert {name: size for name, (size, _) in storage.files(partial=True).items()} == {"a/.2.x.partial": 3}
    assert storage.folder("none").files() == {}
