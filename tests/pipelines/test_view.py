"""Views: rows of other datasets, weighted and left out, that read like any dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines.dataset import Dataset, write_manifest
from pipelines.shards import ShardError
from pipelines.view import View, ViewRow, write_view
from tests.pipelines.tiny import images


def rows(real: Dataset, generated: Dataset, weight: float = 0.5) -> list[ViewRow]:
    """All real rows and, of each training shard of the generated, every other."""
    made = []
    for name, dataset in (("real", real), ("generated", generated)):
        for shard in dataset.shards:
            for n, key in enumerate(dataset.index(shard.name).keys):
                if name == "generated" and shard.split != "train":
                    continue
                made.append(
                    ViewRow(
                        key=f"{name}-{key}",
                        source=name,
                        shard=shard.name,
                        row=n,
                        weight=1.0 if name == "real" else weight,
                        keep=name == "real" or n % 2 == 0,
                    )
                )
    return made


def view(folder: Path, sources: dict[str, Dataset], made: list[ViewRow], samples_per_shard: int = 20) -> View:
    storage = Storage.at(folder)
    fields = write_view(storage, sources, made, samples_per_shard=samples_per_shard)
    write_manifest(storage, {"stage": "augment", **fields})
    opened = Dataset.open(storage)
    assert isinstance(opened, View)
    return opened


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Dataset]:
    return {
        "real": images(tmp_path / "store" / "real"),
        "generated": images(tmp_path / "store" / "generated"),
    }


def test_a_view_reads_the_bytes_it_points_to(tmp_path: Path, sources: dict[str, Dataset]) -> None:
    found = view(tmp_path / "store" / "view", sources, rows(**sources))
    assert found.manifest["counts"]["inputs"] == 30 + 24
    seen = {}
    for shard in found.shards:
        for record in found.read(shard.name, columns=("image", "json", "cls")):
            name, _, key = record.key.partition("-")
            origin = next(
                r
                for s in sources[name].shards
                for r in sources[name].read(s.name, [key], ("image", "json", "cls"))
            )
            assert record.members == origin.members
            assert record.split == origin.split == shard.split
            assert record.meta["weight"] == (1.0 if name == "real" else 0.5)
            seen[record.key] = record
    assert len(seen) == 30 + 12
    assert found.manifest["columns"]["image"]["count"] == 42
    assert found.classes == sources["real"].classes
    first = found.shards[0].name
    pointer = found.pointer(first, 0, "image")
    assert pointer is not None
    data = (Path(pointer.url) / pointer.tar).read_bytes()[pointer.offset : pointer.offset + pointer.size]
    assert data == found.read_member(first, 0, "image")


def test_a_row_that_is_not_kept_keeps_its_place(tmp_path: Path, sources: dict[str, Dataset]) -> None:
    made = rows(**sources)
    kept = [ViewRow(**{**row.__dict__, "keep": True}) for row in made]
    one, other = (view(tmp_path / "store" / n, sources, r) for n, r in (("one", made), ("two", kept)))
    assert [s.name for s in one.shards] == [s.name for s in other.shards]
    assert all(one.index(s.name).keys == other.index(s.name).keys for s in one.shards)
    assert one.digest() != other.digest()


def test_a_weight_is_part_of_what_it_is(tmp_path: Path, sources: dict[str, Dataset]) -> None:
    one, other, same = (
        view(tmp_path / "store" / f"{n}", sources, rows(**sources, weight=weight))
        for n, weight in enumerate((0.5, 0.25, 0.5))
    )
    assert one.digest(("image",)) == same.digest(("image",)) != other.digest(("image",))


def test_a_moved_store_is_no_other_store(tmp_path: Path, sources: dict[str, Dataset]) -> None:
    before = view(tmp_path / "store" / "deep" / "view", sources, rows(**sources))
    digest, first = before.digest(), before.shards[0].name
    truth = [r.members for r in before.read(first)]
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    after = Dataset.open(Storage.at(tmp_path / "elsewhere" / "deep" / "view"))
    assert after.digest() == digest
    assert [r.members for r in after.read(first)] == truth
    after.verify()


def test_damage_in_a_source_is_seen(tmp_path: Path, sources: dict[str, Dataset]) -> None:
    found = view(tmp_path / "store" / "view", sources, rows(**sources))
    tar = tmp_path / "store" / "real" / "00000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match="other bytes"):
        found.verify()
    with pytest.raises(ShardError, match="other bytes"):
        list(found.read(found.shards[0].name))
    shutil.rmtree(tmp_path / "store" / "generated")
    images(tmp_path / "store" / "generated", classes=["circle", "square"])
    with pytest.raises(ShardError, match="not what"):
        Dataset.open(Storage.at(tmp_path / "store" / "view"))


def test_class_ids_mean_the_same_in_all_sources(tmp_path: Path, sources: dict[str, Dataset]) -> None:
    sources["generated"] = images(tmp_path / "store" / "other", classes=["square", "circle"])
    with pytest.raises(ValueError, match="number their classes differently"):
        view(tmp_path / "store" / "view", sources, rows(**sources))
