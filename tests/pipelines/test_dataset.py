"""Datasets: columns joined by shard and key, and read back by the libraries that others use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.objects import ObjectStorage
from cluster.storage import Storage
from pipelines.dataset import Dataset, describe, join, read_manifest, write_manifest
from pipelines.shards import ShardError, canonical, write_shard
from pipelines.stage import Row, Sample
from tests.pipelines.tiny import images


def columns(
    storage: Storage,
    suffix: str,
    *,
    without: tuple[int, ...] = (),
    count: int = 20,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Two shards of one column; rows in `without` are rejected."""
    infos = []
    for name, split, rows in (
        ("00000", "train", range(count // 2)),
        ("10000", "test", range(count // 2, count)),
    ):
        pairs = [
            (
                Row(key=f"k{n:02d}"),
                Sample(key=f"k{n:02d}", reject="no")
                if n in without
                else Sample(key=f"k{n:02d}", members={suffix: b"%d" % n * 9}, meta={"n": n}),
            )
            for n in rows
        ]
        infos.append(write_shard(storage, name, pairs, split=split))
    write_manifest(storage, describe(infos, stage="test", classes=list(classes)))
    return Dataset.open(storage)


def test_every_input_is_counted_once(tmp_path: Path) -> None:
    dataset = columns(Storage.at(tmp_path), "txt", without=(3, 12))
    assert dataset.manifest["counts"] == {"inputs": 20, "committed": 18, "rejected": 2, "reasons": {"no": 2}}
    assert dataset.manifest["splits"]["test"] == {"shards": 1, "samples": 10, "rejected": 1}
    assert dataset.manifest["columns"]["txt"]["count"] == len(dataset) == 18
    assert sum(1 for shard in dataset.shards for _ in dataset.read(shard.name, columns=("txt",))) == 18


def test_rows_without_a_column_are_passed_over(tmp_path: Path) -> None:
    dataset = columns(Storage.at(tmp_path), "txt", without=(3,))
    assert [r.key for r in dataset.read("00000", columns=("txt",))] == [
        f"k{n:02d}" for n in range(10) if n != 3
    ]
    assert list(dataset.read("00000", columns=("txt", "cls"))) == []
    some = list(dataset.read("00000", keys=["k03", "k05", "k99"], columns=("txt",)))
    assert [(r.key, r.split, r.members, r.meta) for r in some] == [
        ("k05", "train", {"txt": b"5" * 9}, {"n": 5})
    ]


def test_columns_are_joined(tmp_path: Path) -> None:
    a = columns(Storage.at(tmp_path / "a"), "txt", without=(3,))
    b = columns(Storage.at(tmp_path / "b"), "npy", without=(4,))
    joined = join({"a": a, "b": b})
    records = list(joined.read("00000", {"a": ("txt",), "b": ("npy",)}))
    assert [r.key for r in records] == [f"k{n:02d}" for n in range(10) if n not in (3, 4)]
    assert all(r.members["txt"] == r.members["npy"] == b"%d" % r.meta["n"] * 9 for r in records)
    with pytest.raises(ValueError, match="same name"):
        list(joined.read("00000", {"a": ("txt",), "b": ("txt",)}))


def test_datasets_of_other_lines_are_not_joined(tmp_path: Path) -> None:
    a = columns(Storage.at(tmp_path / "a"), "txt")
    with pytest.raises(ValueError, match="rows of shard 00000"):
        join({"a": a, "b": columns(Storage.at(tmp_path / "b"), "txt", count=22)})
    with pytest.raises(ValueError, match="different shards"):
        join({"a": a, "c": images(tmp_path / "c")})


def test_a_digest_is_of_what_is_read_only(tmp_path: Path) -> None:
    a = columns(Storage.at(tmp_path / "a"), "txt")
    b = columns(Storage.at(tmp_path / "moved" / "b"), "txt", classes=("x",))
    c = columns(Storage.at(tmp_path / "c"), "txt", without=(1,))
    assert a.digest(("txt",)) == b.digest(("txt",)) != c.digest(("txt",))
    assert a.digest(("cls",)) != b.digest(("cls",)), "a class id means nothing without its name"


def test_a_manifest_is_written_last_and_once(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    with pytest.raises(ValueError, match="not finished"):
        Dataset.open(storage)
    columns(storage, "txt")
    first = read_manifest(storage)
    assert write_manifest(storage, {"shards": []}) == first
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"committed": 20', '"committed": 21'))
    with pytest.raises(ShardError, match="changed"):
        Dataset.open(storage)
    (tmp_path / "manifest.json").write_text(text[:100])
    with pytest.raises(ShardError, match="damaged"):
        Dataset.open(storage)


def test_a_snapshot_is_no_dataset(tmp_path: Path) -> None:
    write_manifest(Storage.at(tmp_path), {}, kind="snapshot")
    with pytest.raises(ValueError, match="is a snapshot"):
        Dataset.open(Storage.at(tmp_path))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    Storage.at(tmp_path).replace("manifest.json", canonical({"format": 2}))
    with pytest.raises(ValueError, match="reads format 1"):
        Dataset.open(Storage.at(tmp_path))


def test_a_remote_sample_is_read_by_range_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path))
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    storage = ObjectStorage("memory://bucket/ranges", memory)
    dataset = columns(storage, "txt")
    monkeypatch.setattr(ObjectStorage, "local", lambda *_: pytest.fail("the whole shard was fetched"))
    assert next(dataset.read("00000", keys=["k07"], columns=("txt",))).members == {"txt": b"7" * 9}
    assert dataset.read_member("00000", 7, "txt") == b"7" * 9
    pointer = dataset.pointer("00000", 7, "txt")
    assert pointer is not None
    data = bytearray(storage.read("00000.tar"))
    data[pointer.offset] ^= 1
    storage.replace("00000.tar", bytes(data))
    with pytest.raises(ShardError, match="other bytes"):
        dataset.read_member("00000", 7, "txt")
    storage.replace("00000.tar", bytes(data[: pointer.offset]))
    with pytest.raises(ShardError, match="cut short"):
        dataset.read_member("00000", 7, "txt")


def test_the_webdataset_library_reads_it(tmp_path: Path) -> None:
    import webdataset

    dataset = images(tmp_path)
    urls = [str(tmp_path / f"{shard.name}.tar") for shard in dataset.shards]
    found = {
        s["__key__"]: (s["png"], json.loads(s["json"]), int(s["cls"]))
        for s in webdataset.WebDataset(urls, shardshuffle=False)
    }
    ours = {
        r.key: (r.members["image"], json.loads(r.members["json"]), int(r.members["cls"]))
        for shard in dataset.shards
        for r in dataset.read(shard.name, columns=("image", "json", "cls"))
    }
    assert found == ours
    assert len(found) == 30


def test_huggingface_datasets_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    from datasets import load_dataset

    dataset = images(tmp_path / "d")
    files = {
        split: [str(tmp_path / "d" / f"{s.name}.tar") for s in dataset.shards if s.split == split]
        for split in dataset.splits
    }
    loaded = load_dataset("webdataset", data_files=files, split="train", streaming=True)
    rows = {row["__key__"]: row for row in loaded}
    ours = {
        r.key: r
        for s in dataset.shards
        if s.split == "train"
        for r in dataset.read(s.name, columns=("image", "json", "cls"))
    }
    assert set(rows) == set(ours)
    for key, row in rows.items():
        assert row["json"] == json.loads(ours[key].members["json"])
        assert row["cls"] == int(ours[key].members["cls"])
        assert row["png"].size == (16, 16)
