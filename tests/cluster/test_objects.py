"""A store in a bucket, on a real S3 server: one winner of every race, and what goes wrong in one line."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.lease import Lease, LeaseLost
from cluster.storage import Storage
from tests import s3

SPAWN = multiprocessing.get_context("spawn")
"""As Ray starts its workers; a fork would inherit the connection's threads dead."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3.serving() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Storage:
    for name, value in s3.credentials(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    return Storage.at(f"s3://{s3.new_bucket()}/store")


def test_what_is_put_is_read(bucket: Storage, tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(6_000_000))
    assert bucket.list() == []
    assert bucket.folders() == []
    assert bucket.put_if_absent("a/1", b"first")
    assert bucket.put_if_absent("a/b/2", source)
    assert not bucket.put_if_absent("a/1", b"second")
    assert not bucket.put_if_absent("a/b/2", source)
    assert bucket.read("a/1") == b"first"
    assert bucket.read_range("a/1", 1, 3) == b"irs"
    assert bucket.size("a/b/2") == 6_000_000
    assert bucket.list() == ["a/1", "a/b/2"]
    assert bucket.list("a/b") == ["a/b/2"]
    assert bucket.folders() == ["a"]
    assert bucket.folder("a").folders() == ["b"]
    assert bucket.local("a/b/2").read_bytes() == source.read_bytes()
    assert bucket.free() is None
    bucket.replace("a/1", b"third")
    assert bucket.local("a/1").read_bytes() == b"third", "not what was there before"
    assert pickle.loads(pickle.dumps(bucket)).read("a/1") == b"third"
    bucket.folder("a").folder("b").delete_folder()
    assert bucket.list() == ["a/1"]
    bucket.delete("a/1")
    bucket.delete("a/1")
    for call in (bucket.read, bucket.size, bucket.local):
        with pytest.raises(FileNotFoundError):
            call("a/1")


def test_the_marks_that_others_make_for_folders_are_no_files(bucket: Storage):
    """As Arrow does when Ray Train keeps its notes in the store."""
    import s3fs

    bucket.put_if_absent("a/1", b"1")
    server = s3fs.S3FileSystem(skip_instance_cache=True, endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    name = bucket.url.removeprefix("s3://").partition("/")[0]
    for key in ("store/", "store/a/", "store/a/b/"):
        server.call_s3("put_object", Bucket=name, Key=key, Body=b"")
    assert bucket.list() == ["a/1"]
    assert bucket.list("a/") == ["a/1"]
    assert bucket.folder("a").list() == ["1"]
    assert bucket.folders() == ["a"]
    assert bucket.folder("a").folders() == ["b"]


@pytest.mark.slow
def test_a_large_file_goes_up_in_parts_and_still_only_once(bucket: Storage, tmp_path: Path):
    source = tmp_path / "large"
    source.write_bytes(bytes(110 * 2**20))
    assert bucket.put_if_absent("large", source)
    assert bucket.size("large") == 110 * 2**20
    bucket.delete("large")
    bucket.put_if_absent("large", b"small")
    assert not bucket.put_if_absent("large", source)
    assert bucket.read("large") == b"small"


def _race(url: str, number: int, ready: Any, wins: Any) -> None:
    storage = Storage.at(url)
    storage.exists("warm")
    ready.wait()
    for n in range(20):
        if storage.put_if_absent(f"{n}", b"%d" % number * 5000):
            wins.put((n, number))


def test_of_several_processes_exactly_one_wins(bucket: Storage):
    wins, ready = SPAWN.Queue(), SPAWN.Barrier(3)
    writers = [SPAWN.Process(target=_race, args=(bucket.url, n, ready, wins)) for n in range(3)]
    for writer in writers:
        writer.start()
    won = [wins.get(timeout=60) for _ in range(20)]
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert wins.empty()
    assert sorted(n for n, _ in won) == list(range(20))
    for n, number in won:
        assert bucket.read(f"{n}") == b"%d" % number * 5000


def test_a_write_whose_answer_was_lost_is_known_as_ones_own(
    bucket: Storage, server: str, monkeypatch: pytest.MonkeyPatch
):
    """The client repeats it by itself, and the server answers that there is one."""
    losses: list[str] = []

    def lost(method: str, path: str) -> bool:
        if method == "PUT" and "mine" in path and not losses:
            losses.append(path)
            return True
        return False

    with s3.between(server, lost) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        through = Storage.at(bucket.url)
        assert through.put_if_absent("mine", b"as it was sent")
        assert losses
        assert not through.put_if_absent("mine", b"as it was sent"), "there is one, if of equal bytes"
    assert bucket.read("mine") == b"as it was sent"


def test_a_server_that_would_overwrite_is_refused(
    bucket: Storage, server: str, monkeypatch: pytest.MonkeyPatch
):
    with s3.between(server, without="If-None-Match") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        careless = Storage.at(bucket.url)
        with pytest.raises(ValueError, match="overwrites where it must refuse"):
            careless.put_if_absent("a", b"1")
        assert careless.list() == []


def test_another_writers_object_is_not_taken_for_ones_own(
    bucket: Storage, server: str, monkeypatch: pytest.MonkeyPatch
):
    """It comes to be there between the look and the write; the bytes are equal."""
    monkeypatch.setattr(type(bucket), "exists", lambda *_: False)
    assert bucket.put_if_absent("taken", b"equal")
    assert not bucket.put_if_absent("taken", b"equal")


def test_missing_things_are_told_in_one_line(
    bucket: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    nowhere = Storage.at("s3://there-is-no-such-bucket/store")
    assert nowhere.list() == []
    with pytest.raises(ValueError, match="There is no bucket there-is-no-such-bucket .*create it") as told:
        nowhere.put_if_absent("a", b"1")
    assert "\n" not in str(told.value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ConnectionError, match="s3://x/store does not answer") as told:
            Storage.at("s3://x/store").read("a")
    assert "\n" not in str(told.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="asks for credentials: set AWS_ACCESS_KEY_ID") as told:
        Storage.at("s3://x/store").read("a")
    assert "\n" not in str(told.value)


def test_a_lease_changes_hands(bucket: Storage):
    first, second = (Lease(bucket.folder("lease"), patience=0.5) for _ in range(2))
    assert first.acquire()
    first.beat()
    first.release()
    assert second.acquire()
    assert (first.number, second.number) == (1, 2)
    with pytest.raises(LeaseLost):
        first.beat()
    second.beat()


def test_a_lease_outlives_a_store_that_is_away_for_a_moment(bucket: Storage, monkeypatch: pytest.MonkeyPatch):
    away = {"now": False}
    replace = type(bucket).replace

    def unsteady(storage: Storage, name: str, data: bytes) -> None:
        if away["now"]:
            away["now"] = False
            raise ConnectionError(f"{storage.url} does not answer.")
        replace(storage, name, data)

    monkeypatch.setattr(type(bucket), "replace", unsteady)
    lease = Lease(bucket.folder("lease"), patience=0.3)
    assert lease.acquire()
    with lease.held():
        away["now"] = True
        while away["now"]:
            pass
        before = bucket.folder("lease").read("000001.beat")
        while bucket.folder("lease").read("000001.beat") == before:
            pass


def test_checkpoints_are_written_whole_read_newest_and_pruned(bucket: Storage):
    import torch

    from pipelines.training import checkpoints
    from pipelines.training.checkpoints import Mark

    for images_seen in (10, 20, 30):
        mark = Mark(images_seen=images_seen, lease=1, cooling=False, target=100)
        checkpoints.save(bucket, mark, {"w": torch.full((3,), float(images_seen))}, {"curve": []})
    (part,) = [name for name in bucket.list("000000000030-") if name.endswith(".safetensors")]
    bucket.replace(part, b"torn")
    found = checkpoints.newest(bucket, lambda mark: True)
    assert found is not None
    assert found.mark.images_seen == 20
    assert found.tensors["w"].tolist() == [20.0] * 3
    checkpoints.prune(bucket, keep=2)
    assert [name for name in bucket.list() if name.endswith(".json")] == [
        "000000000020-000001.json",
        "000000000030-000001.json",
    ]


def test_files_come_with_size_and_time(bucket: Storage, tmp_path: Path):
    import time

    before = time.time()
    assert bucket.files() == {}
    bucket.put_if_absent("a/1", b"first")
    bucket.replace("a/b/2", b"second one")
    found = bucket.folder("a").files()
    assert {name: size for name, (size, _) in found.items()} == {"1": 5, "b/2": 10}
    assert all(before - 2 < changed < time.time() + 2 for _, changed in found.values())
    assert bucket.files(partial=True) == {}


def test_a_lease_is_busy_until_it_is_released(bucket: Storage):
    lease = Lease(bucket.folder("gc"), patience=1.0)
    assert not lease.busy()
    lease.acquire()
    assert lease.busy()
    lease.release()
    assert not lease.busy()
