"""Manifests as arrays: they say what objects said, whatever they hold, and nothing changed goes unseen."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest

from cluster.storage import Storage
from pipelines import dataset as module
from pipelines.dataset import Dataset, describe, lined_up, read_manifest, write_manifest
from pipelines.manifest_text import Part, cut, spelt, turned
from pipelines.shard_index import ShardInfo, canonical
from pipelines.shard_table import Entries, ShardTable
from pipelines.shards import ShardError


def infos(seed: int, count: int) -> list[ShardInfo]:
    """Of several splits, with columns that some lack, rejects by reason, digests that are none."""
    chance = random.Random(seed)

    def digest() -> str:
        return f"{chance.getrandbits(256):064x}"

    found = []
    for n in range(count):
        names = chance.sample(["a.npy", "ä {\n }.json", "image", "jpg"], chance.randint(0, 4))
        reasons = {"broken": 2, 'odd\n  },\n  {"': 1} if chance.random() < 0.3 else {}
        found.append(
            ShardInfo(
                name=f"{n:05d}" if n % 7 else f"{n:05d}-ö",
                split=chance.choice(["train", "validation", "tést"]),
                samples=chance.randint(0, 10**6),
                rejected=sum(reasons.values()),
                bytes=chance.randint(0, 10**13),
                sha256=digest(),
                reasons=reasons,
                columns={
                    name: {
                        "count": chance.randint(0, 9),
                        "bytes": chance.randint(0, 10**13),
                        "digest": digest(),
                    }
                    for name in names
                },
                index=digest() if chance.random() < 0.9 else "",
            )
        )
    return found


def same_lines(given: list[ShardInfo], chance: random.Random) -> list[ShardInfo]:
    """The same with the same columns, and names that look like lines."""
    columns = {name: {"count": 7, "bytes": 9, "digest": "e" * 64} for name in ("a.npy", "ä: {", "b\n }")}
    return [
        dataclasses.replace(
            info,
            name=chance.choice([info.name, "},", "name: ", "  }"]),
            reasons={},
            columns={name: {**of, "count": chance.randint(0, 1)} for name, of in columns.items()},
        )
        for info in given
    ]


def parts(given: list[ShardInfo], size: int) -> list[Part]:
    whole = [dataclasses.asdict(info) for info in given]
    return [Part.of(whole[n : n + size]) for n in range(0, len(whole), size)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_table_gives_back_what_it_was_made_of(size: int) -> None:
    given = infos(size, 100)
    table = ShardTable(parts(given, size))
    assert list(table) == given
    assert table[3:50:9] == given[3:50:9]
    assert table[-1] == given[-1]
    assert [dict(entry) for entry in Entries(table)] == [dataclasses.asdict(info) for info in given]
    assert all(table.find(info.name) == n for n, info in enumerate(given))
    assert table.find("00001x") is None
    assert table.find("zzz") is None
    for split in ("train", "tést", "none"):
        assert table.of(split).tolist() == [n for n, info in enumerate(given) if info.split == split]
    with pytest.raises(IndexError):
        table[100]
    assert list(ShardTable([])) == []
    assert ShardTable([]).find("a") is None


def test_names_are_found_in_any_order() -> None:
    given = infos(1, 50)
    random.Random(0).shuffle(given)
    table = ShardTable(parts(given, 9))
    assert [table.find(info.name) for info in given] == list(range(50))
    assert list(table.ordered()) == sorted(given, key=lambda info: info.name)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every manifest is read as a large one is, a few entries at a time."""
    monkeypatch.setattr(module, "_LARGE", 0)
    monkeypatch.setattr("pipelines.manifest_text._TOGETHER", 500)


FIELDS = {"stage": "s", "statistics": {"shards": [1, {"sha256": "x"}]}, "zoo": "\n ]", "classes": ["ä"]}


@pytest.mark.parametrize("count", [0, 1, 60])
def test_a_large_manifest_is_the_same_dataset(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.at(tmp_path)
    written = write_manifest(storage, describe(infos(5, count), **FIELDS))
    plain = Dataset.open(storage)
    monkeypatch.setattr(module, "_LARGE", 0)
    monkeypatch.setattr("pipelines.manifest_text._TOGETHER", 500)
    found = Dataset.open(storage)
    assert isinstance(found.shards, ShardTable) is (count > 0)
    assert list(found.shards) == list(plain.shards)
    assert {**found.manifest, "shards": [dict(one) for one in found.manifest["shards"]]} == written
    assert (found.columns, found.splits, len(found)) == (plain.columns, plain.splits, len(plain))
    assert found.digest() == plain.digest()
    assert found.digest(("jpg",)) == plain.digest(("jpg",))
    assert all(found.info(info.name) == info for info in plain.shards)
    with pytest.raises(ValueError, match="has no shard nowhere"):
        found.info("nowhere")
    lined_up({"a": found, "b": plain})


@pytest.mark.parametrize("alike", [True, False])
def test_no_byte_of_a_large_manifest_changes_unseen(tmp_path: Path, large: None, alike: bool) -> None:
    storage, chance = Storage.at(tmp_path), random.Random(0)
    given = infos(6, 12)
    write_manifest(storage, describe(same_lines(given, chance) if alike else given, **FIELDS))
    whole = (tmp_path / "manifest.json").read_bytes()
    right = json.loads(whole)
    for _ in range(150):
        place = chance.randrange(len(whole))
        changed = {
            0: whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(7)]) + whole[place + 1 :],
            1: whole[:place] + whole[place + chance.randint(1, 40) :],
            2: whole[:place] + whole[max(0, place - 40) : place] + whole[place:],
        }[chance.randrange(3)]
        (tmp_path / "manifest.json").write_bytes(changed)
        try:
            found = read_manifest(storage)
        except ValueError:
            continue
        # Blanks between words are no part of what a manifest says.
        assert {**found, "shards": [dict(one) for one in found["shards"]]} == right
    (tmp_path / "manifest.json").write_bytes(whole.replace(b'"samples": ', b'"sample": ', 1))
    with pytest.raises(ShardError, match="is damaged"):
        read_manifest(storage)


def test_datasets_of_other_shards_are_told_apart() -> None:
    given = infos(2, 20)
    table = ShardTable(parts(given, 6))
    assert table.alike(ShardTable(parts(given, 20)))
    other = [*given[:7], dataclasses.replace(given[7], split="other"), *given[8:]]
    for wrong in (given[:-1], other, given[::-1]):
        assert not table.alike(ShardTable(parts(wrong, 6)))
    # The same splits, met in another order.
    assert table.alike(ShardTable(parts(given, 1)))


def test_memory_is_below_150_bytes_a_shard() -> None:
    column = {"moments.npy": {"count": 10_000, "bytes": 163_840_000, "digest": "a" * 64}}
    entry = {
        "name": "000000", "split": "train", "samples": 10_000, "rejected": 0, "bytes": 163_840_000,
        "sha256": "b" * 64, "reasons": {}, "columns": column, "index": "c" * 64,
    }  # fmt: skip
    table = ShardTable([Part.of([entry] * 1000)] * 3)
    assert table.nbytes < 150 * 3000
    assert np.unique(table.samples).tolist() == [10_000]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("count", [1, 2, 25])
def test_lines_say_what_objects_say(alike: bool, count: int) -> None:
    """Of entries that have the same lines, and of those that have not."""
    chance = random.Random(count)
    given = infos(count, count)
    if alike:
        given = same_lines(given, chance)
    entries = json.loads(canonical([dataclasses.asdict(info) for info in given]))
    text = json.dumps({"shards": entries}, indent=1, sort_keys=True, ensure_ascii=False).encode()
    found = cut(text)
    assert found is not None
    (whole,) = found[1]
    assert list(ShardTable([turned(whole)])) == given
    assert spelt(whole, lambda: entries) == canonical(entries)


def test_what_is_laid_out_otherwise_is_not_cut() -> None:
    assert cut(json.dumps({"shards": [{"name": "a"}]}).encode()) is None
