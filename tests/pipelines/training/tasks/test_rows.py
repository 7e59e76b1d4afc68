from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cluster.storage import Storage
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.members import Members
from pipelines.shard_cache import CacheConfig
from pipelines.shards import ShardError, write_shard
from pipelines.shuffling import ShuffleConfig
from pipelines.stage import Row, Sample
from pipelines.training.tasks.decoded import Decoded
from pipelines.training.tasks.rows import Rows
from tests import s3
from tests.pipelines import tiny

SHARDS, EACH = 6, 40


def test_rows_that_lack_a_required_column_are_dropped(tmp_path: Path) -> None:
    partly = tiny.dataset(tmp_path / "a", lambda key, n: {"a.npy": b"1"} if n % 2 else {"b.npy": b"2"})
    other = tiny.dataset(tmp_path / "b", lambda key, n: {"c.npy": key.encode()})

    rows = Rows({"a": partly, "b": other}, split="train", required={"a": "a.npy"})

    assert len(rows) == tiny.TRAIN // 2
    assert rows.read(0, "b", "c.npy") == b"k001"
    assert not rows.has(0, "a", "b.npy")


def test_split_without_rows_is_said_unless_it_may_be_empty(tmp_path: Path) -> None:
    images = tiny.dataset(tmp_path, lambda key, n: {"a.npy": b"1"})
    with pytest.raises(ValueError, match="test split has no sample with a.npy of images"):
        Rows({"images": images}, split="test", required={"images": "a.npy"})
    assert len(Rows({"images": images}, split="test", required={"images": "a.npy"}, optional=True)) == 0


@pytest.mark.parametrize("budget", [0, 10**6])
def test_decoded_is_the_same_in_memory_and_not(budget: int) -> None:
    asked: list[int] = []

    def decode(n: int) -> np.ndarray:
        asked.append(n)
        return np.full((2, 3), n, np.float32)

    decoded = Decoded(decode, 5, dtype=np.float16, budget=budget)
    for _ in range(2):
        np.testing.assert_array_equal(decoded[[4, 1, 4]][:, 0, 0], np.array([4, 1, 4], np.float16))
    assert len(asked) == (1 + 6 if budget == 0 else 1 + 3)


def data(name: str, n: int, size: int = 1200) -> bytes:
    return random.Random(f"{name}{n}").randbytes(size)


def dataset(
    storage: Storage,
    name: str,
    *,
    lacks: set[int] = frozenset(),
    rejects: set[int] = frozenset(),
    key: str = "k",
) -> Dataset:
    """Shards of 40 rows with a member `name.npy` each, less those that lack it or are rejected."""
    shards = []
    for shard in range(SHARDS):
        pairs = []
        for n in range(shard * EACH, (shard + 1) * EACH):
            members = {} if n in lacks | rejects else {f"{name}.npy": data(name, n), "json": b"{}"}
            reject = "broken" if n in rejects else None
            sample = Sample(key=f"{key}{n:04d}", members=members, reject=reject)
            pairs.append((Row(key=f"{key}{n:04d}"), sample))
        shards.append(write_shard(storage, f"{shard:05d}", pairs, split="train"))
    write_manifest(storage, describe(shards, stage="test"))
    return Dataset.open(storage)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards whose indices were read."""
    found, spans = [], Members.spans
    monkeypatch.setattr(Members, "spans", lambda self, shard: found.append(shard) or spans(self, shard))
    return found


def test_whole_shards_are_counted_without_their_indices(tmp_path: Path, loads: list[str]) -> None:
    a, b = (dataset(Storage.at(tmp_path / name), name) for name in "ab")
    rows = Rows({"a": a, "b": b}, split="train", required={"a": "a.npy", "b": "b.npy"})
    assert (len(rows), loads) == (SHARDS * EACH, [])
    assert rows.place(EACH + 3) == ("00001", 3)
    assert loads == []
    assert rows.read(EACH + 3, "b", "b.npy") == data("b", EACH + 3)
    assert loads == ["00001", "00001"]
    with pytest.raises(IndexError):
        rows.read(SHARDS * EACH, "a", "a.npy")


def test_rows_are_those_that_have_everything(tmp_path: Path, loads: list[str]) -> None:
    """Against a plain list; what one column alone lacks in a shard is told by the manifest."""
    chance = random.Random(1)
    for trial in range(5):
        rejects = set(chance.sample(range(2 * EACH), 5))
        lacks = set(chance.sample(range(EACH, 4 * EACH), 20))
        mine = rejects | set(chance.sample(range(3 * EACH, 5 * EACH), 9))
        a = dataset(Storage.at(tmp_path / f"a{trial}"), "a", lacks=lacks, rejects=rejects)
        b = dataset(Storage.at(tmp_path / f"b{trial}"), "b", rejects=mine)
        loads.clear()
        rows = Rows({"a": a, "b": b}, split="train", required={"a": "a.npy"})
        assert set(loads) <= {"00000", "00001", "00003"}
        assert "00002" not in loads
        wanted = [n for n in range(SHARDS * EACH) if n not in lacks | rejects | mine]
        assert len(rows) == len(wanted)
        assert list(rows.places()) == [(f"{n // EACH:05d}", n % EACH) for n in wanted]
        assert [rows.place(n) for n in range(len(rows))] == list(rows.places())
        assert all(rows.read(n, "a", "a.npy") == data("a", of) for n, of in enumerate(wanted))
        assert [rows.has(n, "b", "a.npy") for n in range(3)] == [False] * 3


def test_datasets_of_two_lines_are_told_apart_when_they_are_read(tmp_path: Path) -> None:
    a, b = dataset(Storage.at(tmp_path / "a"), "a"), dataset(Storage.at(tmp_path / "b"), "b", key="x")
    rows = Rows({"a": a, "b": b}, split="train", required={"a": "a.npy"})
    with pytest.raises(ValueError, match="differ in the rows of shard 00000: not of one line"):
        rows.read(0, "a", "a.npy")
    short = tiny.images(tmp_path / "short")
    with pytest.raises(ValueError, match="different shards"):
        Rows({"a": a, "b": short}, split="train", required={"a": "a.npy"})


def test_other_bytes_than_were_written_are_never_given(tmp_path: Path) -> None:
    a = dataset(Storage.at(tmp_path / "a"), "a")
    tar = tmp_path / "a" / "00002.tar"
    whole = tar.read_bytes()
    place = whole.index(data("a", 2 * EACH + 7))
    tar.write_bytes(whole[: place + 5] + bytes([whole[place + 5] ^ 1]) + whole[place + 6 :])
    rows = Rows({"a": a}, split="train", required={"a": "a.npy"})
    assert rows.read(2 * EACH + 6, "a", "a.npy") == data("a", 2 * EACH + 6)
    with pytest.raises(ShardError, match="has other bytes than were written; delete 00002.tar"):
        rows.read(2 * EACH + 7, "a", "a.npy")
    (tmp_path / "a" / "00003.tar").unlink()
    with pytest.raises(ShardError, match="is missing"):
        rows.read(3 * EACH, "a", "a.npy")
    index = tmp_path / "a" / "00004.parquet"
    index.write_bytes(index.read_bytes()[:-7] + b"7654321")
    with pytest.raises(ShardError, match=r"00004.parquet is damaged"):
        rows.read(4 * EACH, "a", "a.npy")


def test_indices_in_memory_are_bounded(tmp_path: Path, loads: list[str]) -> None:
    rows = Rows({"a": dataset(Storage.at(tmp_path), "a")}, split="train", required={"a": "a.npy"})
    rows._budget = 3 * rows._load(0).nbytes
    loads.clear()
    for _ in range(2):
        for n in range(0, len(rows), EACH):
            rows.read(n, "a", "a.npy")
            assert len(rows._loaded) <= 3
            assert rows._bytes == sum(shard.nbytes for shard in rows._loaded.values())
    assert len(loads) == 2 * SHARDS
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: rows.read(n % len(rows), "a", "a.npy"), range(0, 9999, 7)))
    assert found == [data("a", n % len(rows)) for n in range(0, 9999, 7)]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3.serving() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.credentials(url).items():
            patch.setenv(name, value)
        yield f"s3://{s3.new_bucket()}"


def test_a_remote_dataset_is_read_in_blocks_and_kept(bucket: str, tmp_path: Path) -> None:
    a = dataset(Storage.at(f"{bucket}/a"), "a")
    config = CacheConfig(folder=str(tmp_path), bytes=1 << 24)

    def rows() -> Rows:
        shuffle = ShuffleConfig(window=64, lanes=8, block=10)
        return Rows({"a": a}, split="train", required={"a": "a.npy"}, cache=config, shuffle=shuffle)

    one, order = rows(), list(range(SHARDS * EACH))
    random.Random(0).shuffle(order)
    assert all(one.read(n, "a", "a.npy") == data("a", n) for n in order)
    cache = one.members["a"].cache
    assert cache is not None
    assert cache.requests == SHARDS + SHARDS * EACH // 10  # indices, and each block once
    # Another worker of the machine asks the store for nothing.
    other = rows()
    assert all(other.read(n, "a", "a.npy") == data("a", n) for n in order)
    kept = other.members["a"].cache
    assert kept is not None
    assert kept.requests == 0

    # Every byte of every entry is turned: nothing wrong is given, and all is fetched once more.
    for path in tmp_path.rglob("*"):
        if path.is_file() and len(path.name) == 64:
            path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    third = rows()
    assert all(third.read(n, "a", "a.npy") == data("a", n) for n in order)
    again = third.members["a"].cache
    assert again is not None
    assert again.requests == cache.requests

    # What is damaged in the store itself is said.
    storage = Storage.at(f"{bucket}/a")
    whole = storage.read("00001.tar")
    place = whole.index(data("a", EACH + 1))
    storage.replace("00001.tar", whole[:place] + b"?" + whole[place + 1 :])
    for path in tmp_path.rglob("*"):
        if path.is_file() and len(path.name) == 64:
            path.unlink()
    with pytest.raises(ShardError, match="has other bytes than were written"):
        rows().read(EACH + 1, "a", "a.npy")


def test_members_that_lie_far_apart_are_read_alone(bucket: str, tmp_path: Path) -> None:
    storage, shards = Storage.at(f"{bucket}/far"), []
    pairs = [
        (Row(key=f"k{n}"), Sample(key=f"k{n}", members={"jpg": data("x", n, 5000), "cls": b"%d" % n}))
        for n in range(9)
    ]
    shards.append(write_shard(storage, "00000", pairs, split="train"))
    write_manifest(storage, describe(shards, stage="test"))
    given = {"images": Dataset.open(storage)}
    config = CacheConfig(folder=str(tmp_path), bytes=1 << 24)
    rows = Rows(given, split="train", required={}, reads={"images": ("cls",)}, cache=config)
    assert [rows.read(n, "images", "cls") for n in range(9)] == [b"%d" % n for n in range(9)]
    cache = rows.members["images"].cache
    assert cache is not None
    assert cache.requests == 1  # the index
    assert (
        hashlib.sha256(rows.read(3, "images", "image")).digest()
        == hashlib.sha256(data("x", 3, 5000)).digest()
    )
