"""Damage to committed shards and manifests: seen by every way of reading before a damaged sample is used."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cluster.objects import ObjectStorage
from cluster.storage import LocalStorage, Storage
from pipelines import dataset as datasets
from pipelines import shards
from pipelines.dataset import Dataset, describe, join, write_manifest
from pipelines.sealing import seal, sealed
from pipelines.shards import ShardError, canonical, read_index, write_shard
from pipelines.stage import Row, Sample
from pipelines.view import ViewRow, write_view

NAMES = ("00000", "00001")
ROWS = 9


def samples(first: int, suffix: str) -> Iterator[tuple[Row, Sample]]:
    """Rows of which the fourth is rejected, and which share members."""
    draw = random.Random(f"{first} {suffix}")
    for n in range(first, first + ROWS):
        key = f"k{n:03d}"
        if n - first == 3:
            yield Row(key=key), Sample(key=key, reject="unreadable", meta={"file_name": f"{n}.jpg"})
            continue
        members = {"json": canonical({"n": n}), suffix: draw.randbytes(200 + n)}
        shared = {f"{n % 2:020d}.parity": b"%d" % (n % 2) * 30}
        meta = {"width": 64, "text": f"number {n}", "share": n / 7}
        yield Row(key=key), Sample(key=key, members=members, meta=meta, shared=shared)


def written(folder: Path, suffix: str) -> Dataset:
    storage = Storage.at(folder)
    infos = [
        write_shard(storage, name, samples(n * ROWS, suffix), split="train") for n, name in enumerate(NAMES)
    ]
    write_manifest(storage, describe(infos, stage="test", classes=["even", "odd"]))
    return Dataset.open(storage)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets of one line, `webp` and `npy`, and a view of the first, which leaves out some rows."""
    top = tmp_path_factory.mktemp("good")
    images = written(top / "webp", "webp")
    written(top / "npy", "npy")
    rows = [
        ViewRow(key=f"v-{key}", source="webp", shard=name, row=n, keep=n % 4 != 0)
        for name in NAMES
        for n, key in enumerate(images.index(name).keys)
    ]
    view = Storage.at(top / "view")
    write_manifest(view, {"stage": "augment", **write_view(view, {"webp": images}, rows)})
    return top


Read = Callable[[Path, str, str], Iterator[Any]]


def whole(top: Path, dataset: str, shard: str) -> Iterator[Any]:
    for record in Dataset.open(Storage.at(top / dataset)).read(shard, columns=(dataset, "json")):
        yield record.key, record.members


def by_keys(top: Path, dataset: str, shard: str) -> Iterator[Any]:
    keys = [f"k{int(shard) * ROWS + n:03d}" for n in (2, 7)]
    for record in Dataset.open(Storage.at(top / dataset)).read(shard, keys, (dataset,)):
        yield record.key, record.members


def member(top: Path, dataset: str, shard: str) -> Iterator[Any]:
    found = Dataset.open(Storage.at(top / dataset))
    for n in (8, 0):
        yield found.read_member(shard, n, dataset)
    yield found.read_shared(shard, "0" * 19 + "1.parity")


def joined(top: Path, dataset: str, shard: str) -> Iterator[Any]:
    both = join({name: Dataset.open(Storage.at(top / name)) for name in ("npy", "webp")})
    for record in both.read(shard, {"webp": ("webp", "json"), "npy": ("npy",)}):
        yield record.key, record.members


def viewed(top: Path, dataset: str, shard: str) -> Iterator[Any]:
    """Of the rows of a view, those that lie in the shard."""
    view = Dataset.open(Storage.at(top / "view"))
    for one in view.shards:
        for record in view.read(one.name, columns=("webp",)):
            if record.meta["source"] == "webp" and int(record.key[-3:]) // ROWS == int(shard):
                yield record.key, record.members


def verified(top: Path, dataset: str, shard: str) -> Iterator[Any]:
    Dataset.open(Storage.at(top / dataset)).verify()
    yield "whole"


WAYS: dict[str, list[Read]] = {
    "webp": [whole, by_keys, member, joined, viewed, verified],
    "npy": [whole, by_keys, member, joined, verified],
    "view": [viewed, verified],
}


def flipped(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def junk(draw: random.Random, data: bytes) -> bytes:
    size = draw.randrange(1, 2000)
    return data + draw.choice([bytes(size), bytes(512), b"\n", draw.randbytes(size)])


def cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def at_a_block(draw: random.Random, data: bytes) -> bytes:
    """Where the tar stays one: at a member's header, or in the zeros at its end."""
    return data[: 512 * draw.randrange(len(data) // 512)]


def shortened(draw: random.Random, data: bytes) -> bytes:
    return data[: -draw.randrange(1, 4)]


def said_otherwise(draw: random.Random, data: bytes) -> bytes:
    """The manifest with another number in it, in its own spelling."""
    manifest = json.loads(data)
    shard = draw.choice(manifest["shards"])
    shard[draw.choice(["samples", "rejected", "bytes"])] += 1
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


CHANGES: dict[str, list[Callable[[random.Random, bytes], bytes]]] = {
    "tar": [flipped, flipped, at_a_block, cut, shortened, junk],
    "parquet": [flipped, flipped, cut, shortened, junk],
    "manifest": [flipped, cut, shortened, junk, said_otherwise],
}


def damage(draw: random.Random, top: Path, dataset: str, shard: str) -> str:
    """One thing wrong with a shard, or with the manifest; its name."""
    folder = top / dataset
    if dataset == "view":
        shard = next(folder.glob("*.tar")).stem
        what = draw.choice(["change parquet", "change manifest", "delete parquet", "delete manifest"])
    else:
        what = draw.choice(
            ["change tar", "change tar", "change parquet", "change manifest", "swap tar", "swap parquet",
             "swap both", "exchange", "delete tar", "delete parquet", "delete manifest", "another's manifest"]
        )  # fmt: skip
    verb, _, kind = what.partition(" ")
    other = folder / NAMES[1 - int(shard)] if dataset != "view" else folder
    file = folder / "manifest.json" if kind == "manifest" else folder / f"{shard}.{kind}"
    if verb == "change":
        change = draw.choice(CHANGES[kind])
        data = file.read_bytes()
        # A file of its own: one that was read a moment ago is known by the time of its last change.
        file.unlink()
        file.write_bytes(change(draw, data))
        return f"{what}: {change.__name__}"
    if verb == "delete":
        file.unlink()
    elif what == "another's manifest":
        shutil.copy(top / {"webp": "npy", "npy": "webp"}[dataset] / "manifest.json", folder)
    elif what == "exchange":
        for ending in ("tar", "parquet"):
            mine, theirs = folder / f"{shard}.{ending}", other.with_suffix(f".{ending}")
            mine.rename(folder / "aside")
            theirs.rename(mine)
            (folder / "aside").rename(theirs)
    else:
        for ending in ("tar", "parquet") if kind == "both" else (kind,):
            shutil.copy(other.with_suffix(f".{ending}"), folder / f"{shard}.{ending}")
    return what


@pytest.mark.timeout(600)
def test_of_400_mutations_each_is_seen_before_a_sample_is_used_and_no_good_copy_is_accused(
    tmp_path: Path, good: Path
) -> None:
    truth = {
        (dataset, way, shard): list(way(good, dataset, shard))
        for dataset, ways in WAYS.items()
        for way in ways
        for shard in NAMES
    }
    draw, kinds, missed, alarms = random.Random(0), Counter(), [], []
    for n in range(400):
        top = tmp_path / str(n)
        shutil.copytree(good, top)
        dataset, shard = draw.choice(["webp", "webp", "npy", "npy", "view"]), draw.choice(NAMES)
        sound = draw.choice(WAYS[dataset])
        try:
            if list(sound(top, dataset, shard)) != truth[dataset, sound, shard]:
                alarms.append((n, sound.__name__))
        except ValueError as error:
            alarms.append((n, str(error)))
        kind = damage(draw, top, dataset, shard)
        kinds[kind] += 1
        for way in WAYS[dataset]:
            used = []
            try:
                used += way(top, dataset, shard)
            except ValueError:
                pass
            else:
                missed.append((n, kind, dataset, way.__name__))
            if used:
                missed.append((n, kind, dataset, way.__name__, f"{len(used)} used"))
        shutil.rmtree(top)
    assert not missed
    assert not alarms
    assert len(kinds) > 20, "every kind was drawn"


@pytest.mark.parametrize("dataset", ["webp", "npy"])
def test_of_a_bucket_nothing_else_is_read_than_was_written(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    """By byte range only what is asked for is checked: it is right, or refused."""
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    draw, seen = random.Random(1), Counter()
    keys = [f"k{n:03d}" for n in range(0, ROWS, 2)]
    right = Dataset.open(Storage.at(good / dataset)).read("00000", keys, (dataset,))
    truth = [(record.key, record.members) for record in right]
    for n in range(60):
        copy = tmp_path / str(n)
        shutil.copytree(good, copy)
        kind = damage(draw, copy, dataset, "00000")
        remote = ObjectStorage(f"memory://bucket/{n}", memory)
        for path in (copy / dataset).iterdir():
            remote.put_if_absent(path.name, path)
        used = []
        try:
            found = Dataset.open(remote)
            used += ((record.key, record.members) for record in found.read("00000", keys, (dataset,)))
            seen["unseen"] += 1
            assert "tar" in kind, kind
        except ValueError:
            seen["seen"] += 1
        assert used == truth[: len(used)], kind
        with pytest.raises(ValueError, match="."):
            Dataset.open(remote).verify()
        shutil.rmtree(copy)
    assert seen["seen"] > 30


def test_what_rots_behind_a_reader_is_seen_at_its_next_reading(tmp_path: Path, good: Path) -> None:
    """A disk changes no times: what was found right before is checked member by member."""
    folder = tmp_path / "webp"
    shutil.copytree(good / "webp", folder)
    dataset = Dataset.open(Storage.at(folder))
    truth = [record.members for record in dataset.read("00000", columns=("webp",))]
    tar, span = folder / "00000.tar", dataset.index("00000").member(5, "webp")
    assert span
    state = tar.stat()
    data = bytearray(tar.read_bytes())
    data[span[0] + 3] ^= 4
    tar.write_bytes(data)
    os.utime(tar, ns=(state.st_atime_ns, state.st_mtime_ns))
    used = []
    with pytest.raises(ShardError, match="other bytes"):
        used += (record.members for record in dataset.read("00000", columns=("webp",)))
    assert used == truth[: len(used)]
    with pytest.raises(ShardError, match="other bytes"):
        dataset.read_member("00000", 5, "webp")


def test_what_changes_while_it_is_read_is_seen(tmp_path: Path, good: Path) -> None:
    folder = tmp_path / "webp"
    shutil.copytree(good / "webp", folder)
    dataset = Dataset.open(Storage.at(folder))
    reading = dataset.read("00000", columns=("webp",))
    next(reading)
    tar, span = folder / "00000.tar", dataset.index("00000").member(8, "webp")
    assert span
    with tar.open("r+b") as file:
        file.seek(span[0])
        file.write(b"?????")
    with pytest.raises(ShardError, match="other bytes"):
        list(reading)


def test_each_byte_is_hashed_once_and_not_twice(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "webp"
    shutil.copytree(good / "webp", folder)
    members, wholes = [], []

    class Counting:
        @staticmethod
        def sha256(data: bytes = b"") -> Any:
            members.append(len(data))
            return shards_hash(data)

    import hashlib

    shards_hash = hashlib.sha256
    digest_of = shards.digest_of
    monkeypatch.setattr(shards, "hashlib", Counting)
    monkeypatch.setattr(shards, "digest_of", lambda file: wholes.append(1) or digest_of(file))
    dataset = Dataset.open(Storage.at(folder))
    first = list(dataset.read("00000", columns=("webp",)))
    assert (len(wholes), len(members)) == (1, 0)
    assert list(dataset.read("00000", columns=("webp",))) == first
    assert (len(wholes), len(members)) == (1, len(first))


def test_every_bit_of_a_sealed_file_counts() -> None:
    from pipelines.sealing import BLANK

    data = seal(b"head " + BLANK + b" tail")
    assert sealed(data)
    assert not sealed(b"another file")
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(ValueError):
            # What hits the seal's own mark takes the seal away, which the index says that it has.
            assert not sealed(bytes(changed))


def test_an_index_of_before_seals_is_read_and_its_rows_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    storage = LocalStorage(tmp_path)
    info = write_shard(storage, "00000", samples(0, "webp"), split="train")
    path = tmp_path / "00000.parquet"
    expected = read_index(storage, "00000", info)
    table = pq.read_table(path)
    head = {b"latentmill": table.schema.metadata[b"latentmill"]}
    pq.write_table(table.replace_schema_metadata(head), path, compression="zstd")
    assert read_index(storage, "00000", info) == expected
    column = table.column_names.index("webp.digest")
    digests = [None if d is None else d[::-1] for d in table.column(column).to_pylist()]
    table = table.set_column(column, "webp.digest", [digests]).replace_schema_metadata(head)
    pq.write_table(table, path, compression="zstd")
    with pytest.raises(ShardError, match="damaged"):
        read_index(storage, "00000")


def test_a_large_manifest_is_parsed_once_and_a_changed_one_is_another(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(good / "webp", tmp_path / "webp")
    monkeypatch.setattr(datasets, "_LARGE", 0)
    monkeypatch.setattr(datasets, "_known", {})
    parsed = []
    original = datasets._parsed
    monkeypatch.setattr(datasets, "_parsed", lambda *told: parsed.append(1) or original(*told))
    first, second = (Dataset.open(Storage.at(tmp_path / "webp")) for _ in range(2))
    assert first.manifest == second.manifest
    assert len(parsed) == 1
    draw, path = random.Random(3), tmp_path / "webp" / "manifest.json"
    data = path.read_bytes()
    for change in (*CHANGES["manifest"], flipped, flipped):
        path.write_bytes(change(draw, data))
        with pytest.raises(ValueError, match="manifest"):
            Dataset.open(Storage.at(tmp_path / "webp"))
    path.write_bytes(data)
    assert Dataset.open(Storage.at(tmp_path / "webp")).manifest == first.manifest
