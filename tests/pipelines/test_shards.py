"""Shards: equal bytes for equal samples, and no damage that goes unseen."""

from __future__ import annotations

import dataclasses
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines.shards import (
    ShardInfo,
    canonical,
    read_index,
    verify_shard,
    write_shard,
)
from pipelines.stage import Row, Sample

META = {"text": "é\n", "count": 2**40, "huge": 2**70, "share": 0.1, "yes": True, "none": None}


def samples(count: int, seed: int = 0) -> Iterator[tuple[Row, Sample]]:
    draw = random.Random(seed)
    for n in range(count):
        key = f"k{n:03d}"
        if n % 5 == 3:
            yield Row(key=key), Sample(key=key, reject="truncated", meta={"file_name": f"{n}.jpg"})
            continue
        members = {"json": canonical({"n": n}), "webp": draw.randbytes(300 + n)}
        shared = {f"{n % 2:020d}.text.npy": b"%d" % (n % 2) * 40}
        mixed = n if n % 2 else str(n)
        yield Row(key=key), Sample(key=key, members=members, meta={**META, "mixed": mixed}, shared=shared)


def write(
    folder: Path, name: str = "00000", count: int = 12, seed: int = 0, split: str = "train"
) -> ShardInfo:
    return write_shard(
        Storage.at(folder), name, samples(count, seed), split=split, work=lambda row: f"w{row.key}"
    )


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    infos = [write(tmp_path / name) for name in "ab"]
    assert infos[0] == infos[1]
    # Frozen: other bytes for the same samples would make every dataset on every disk look damaged. (Shared
    # members lay behind all rows once; such shards are read, healed and continued as they are.)
    assert infos[0].sha256 == "e9cacc8b6d65afc440d06ce787f2e716779b85ea3ef418eb2de77aa6f8c60837"
    alone = ((row, dataclasses.replace(sample, shared={})) for row, sample in samples(12))
    plain = write_shard(Storage.at(tmp_path / "c"), "00000", alone, split="train")
    assert plain.sha256 == "0a3ce9908c4c6c751aa457cc2c378bcfd4e9980db07c62c6b9421d0c4e3ddaae"
    for file in ("00000.tar", "00000.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_tar_is_plain(tmp_path: Path) -> None:
    write(tmp_path)
    with tarfile.open(tmp_path / "00000.tar") as tar:
        members = tar.getmembers()
    keys = [m.name for m in members if m.name[0] == "k"]
    assert keys == sorted(keys)
    # What samples share lies with the first that has it.
    names = [m.name for m in members][: 2 * 3]
    assert names[2::3] == ["0" * 20 + ".text.npy", "0" * 19 + "1.text.npy"]
    assert [*names[:2], *names[3:5]] == keys[:4]
    assert len(members) == len(keys) + 2
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_the_index_says_where_everything_lies(tmp_path: Path) -> None:
    info = write(tmp_path)
    index = read_index(Storage.at(tmp_path), "00000", info)
    data = (tmp_path / "00000.tar").read_bytes()
    expected = list(samples(12))
    assert index.keys == [row.key for row, _ in expected]
    assert index.works == [f"w{row.key}" for row, _ in expected]
    assert index.reasons == [sample.reject for _, sample in expected]
    assert index.meta == [sample.meta for _, sample in expected]
    for n, (_, sample) in enumerate(expected):
        for suffix in ("json", "webp"):
            span = index.member(n, suffix)
            assert (data[span[0] : span[0] + span[1]] if span else None) == sample.members.get(suffix)
        assert index.member(n, "image") == index.member(n, "webp")
        assert index.digests(n, ("png", "webp"))[0] == ""
    offset, size, _ = index.shared["0" * 20 + ".text.npy"]
    assert data[offset : offset + size] == b"0" * 40
    assert (info.samples, info.rejected, info.reasons) == (12, 2, {"truncated": 2})


def test_column_digests_follow_keys_and_bytes_only(tmp_path: Path) -> None:
    pairs = list(samples(6))
    changed = [
        (row, Sample(key=s.key, members={**s.members, "json": b"{}"}, reject=s.reject) if s.members else s)
        for row, s in pairs
    ]
    renamed = [
        (Row(key=f"x{row.key}"), Sample(key=f"x{s.key}", members=s.members, reject=s.reject))
        for row, s in pairs
    ]
    stores = [Storage.at(tmp_path / name) for name in "abc"]
    first, other, moved = (
        write_shard(store, "00000", p, split="train").columns
        for store, p in zip(stores, (pairs, changed, renamed), strict=True)
    )
    assert first["webp"] == other["webp"] == first["image"]
    assert first["json"]["digest"] != other["json"]["digest"]
    assert first["webp"]["digest"] != moved["webp"]["digest"]


@pytest.mark.parametrize(
    "pairs",
    [
        [(Row(key="b"), Sample(key="b")), (Row(key="a"), Sample(key="a"))],
        [(Row(key="a"), Sample(key="a")), (Row(key="a"), Sample(key="a"))],
        [(Row(key="a"), Sample(key="b"))],
        [(Row(key="a"), Sample(key="a", members={"x": b""}, reject="no"))],
        [(Row(key="a" * 99), Sample(key="a" * 99, members={"json": b""}))],
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, pairs: list[tuple[Row, Sample]]) -> None:
    with pytest.raises(ValueError, match="order|rejected|longer"):
        write_shard(Storage.at(tmp_path), "00000", pairs, split="train")
    assert Storage.at(tmp_path).list() == []


def test_a_second_writer_changes_nothing(tmp_path: Path) -> None:
    first = write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert write(tmp_path) == first
    assert write(tmp_path, seed=1) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_tar_without_index_is_adopted_if_it_is_whole(tmp_path: Path) -> None:
    first = write(tmp_path)
    (tmp_path / "00000.parquet").unlink()
    # A driver whose floats differ in the last bit must not describe its own bytes beside another's tar.
    second = write(tmp_path, seed=1)
    assert second == first
    verify_shard(Storage.at(tmp_path), second)


@pytest.mark.parametrize("cut", [0, 100, 512, 5000, -512])
def test_a_torn_tar_without_index_is_made_again(tmp_path: Path, cut: int) -> None:
    first = write(tmp_path)
    (tmp_path / "00000.parquet").unlink()
    tar = tmp_path / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:cut])
    assert write(tmp_path) == first
    verify_shard(Storage.at(tmp_path), first)


def test_a_foreign_tar_without_index_is_made_again(tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    write(tmp_path / "b", count=9)
    shutil.copy(tmp_path / "b" / "00000.tar", tmp_path / "a" / "00000.tar")
    (tmp_path / "a" / "00000.parquet").unlink()
    assert write(tmp_path / "a") == first
