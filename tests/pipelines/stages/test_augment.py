from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.storage import Storage
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.shards import write_shard
from pipelines.stage import Row, Sample
from pipelines.stages.augment import ALL, Augment, top_up
from tests.pipelines.stages.test_evaluate import ToySession, colours, dataset, png

TAIL = {"common": 40, "fair": 20, "rare": 4, "single": 1}


def labelled(
    folder: Path, counts: dict[str, int], *, seed: int, held_out: int = 0, known: Any = None
) -> Dataset:
    names = list(known or counts)
    splits: dict[str, list[dict[str, Any]]] = {"train": []}
    for name, count in counts.items():
        members = [{"png": png(c), "cls": str(names.index(name)).encode()} for c in colours(count, seed=seed)]
        splits["train"] += members
        seed += 1
    if held_out:
        splits["validation"] = [{"png": png(c), "cls": b"0"} for c in colours(held_out, seed=seed + 100)]
    return dataset(folder, splits, classes=names)


def augment(tmp_path: Path, real: Dataset, generated: Dataset, *, name: str = "view", **fields: Any):
    session = ToySession({"real": real, "generated": generated}, None, tmp_path)
    session.output = Storage.at(tmp_path / name)
    said = Augment(real="r", generated="g", **fields).run(session)
    write_manifest(session.output, {"stage": "augment", "fingerprint": "f", **said})
    return said, Dataset.open(session.output), session


def taken(view: Dataset) -> list[tuple[str, int, float]]:
    """(source, class, weight) of each training row."""
    found = []
    for shard in view.shards:
        if shard.split == "train":
            found += [
                (record.meta["source"], int(record.members["cls"]), record.meta["weight"])
                for record in view.read(shard.name, columns=("cls", "image"))
            ]
    return found


def test_a_long_tail_is_topped_up_to_exact_counts(tmp_path: Path):
    real = labelled(tmp_path / "real", TAIL, seed=0, held_out=7)
    generated = labelled(tmp_path / "generated", dict.fromkeys(TAIL, 15), seed=50)
    said, view, session = augment(tmp_path, real, generated)
    # the 75 % quantile of 1, 4, 20, 40 is 20; at most three generated for a real one; 15 of a class are there
    assert {name: c["wanted"] for name, c in said["augmented"].items()} == {
        "common": 0, "fair": 0, "rare": 12, "single": 3,
    }  # fmt: skip
    rows = taken(view)
    for number, (name, count) in enumerate(TAIL.items()):
        assert sum(source == "real" and c == number for source, c, _ in rows) == count
        assert (
            sum(source == "generated" and c == number for source, c, _ in rows)
            == said["augmented"][name]["generated"]
        )
    assert {(source, weight) for source, _, weight in rows} == {("real", 1.0), ("generated", 0.5)}
    held_out = [
        r for s in view.shards if s.split == "validation" for r in view.read(s.name, columns=("image",))
    ]
    assert len(held_out) == 7
    assert {record.meta["source"] for record in held_out} == {"real"}
    assert said["counts"]["committed"] == sum(TAIL.values()) + 7 + 15
    assert next(e for e in session.events if e["kind"] == "picture")["png"][:4] == b"\x89PNG"
    assert not [e for e in session.events if e["kind"] == "note"]


def test_what_is_short_is_told(tmp_path: Path):
    real = labelled(tmp_path / "real", TAIL, seed=0)
    generated = labelled(tmp_path / "generated", {"rare": 5, "single": 9}, seed=50, known=TAIL)
    said, view, session = augment(tmp_path, real, generated, target=20)
    assert said["augmented"]["rare"] == {"real": 4, "wanted": 12, "available": 5, "generated": 5}
    (note,) = [e["text"] for e in session.events if e["kind"] == "note"]
    assert "rare by 7" in note
    assert len(view) == sum(TAIL.values()) + 5 + 3


def test_a_higher_target_adds_to_a_lower_one(tmp_path: Path):
    real = labelled(tmp_path / "real", {"a": 10, "b": 10}, seed=0)
    generated = labelled(tmp_path / "generated", {"a": 30, "b": 30}, seed=50)

    def keys(view: Dataset) -> set[str]:
        return {key for s in view.shards for key in view.index(s.name).keys if key.startswith("generated-")}

    _, few, _ = augment(tmp_path, real, generated, name="few", target=15)
    _, more, _ = augment(tmp_path, real, generated, name="more", target=25)
    _, again, _ = augment(tmp_path, real, generated, name="again", target=15)
    assert keys(few) < keys(more)
    assert keys(few) == keys(again)
    assert few.digest() == again.digest() != more.digest()


def test_without_classes_the_whole_is_topped_up(tmp_path: Path):
    real = dataset(tmp_path / "real", {"train": [{"png": png(c)} for c in colours(12, seed=0)]})
    generated = dataset(tmp_path / "generated", {"train": [{"png": png(c)} for c in colours(50, seed=1)]})
    said, view, _ = augment(tmp_path, real, generated)
    assert said["augmented"] == {"all": {"real": 12, "wanted": 12, "available": 50, "generated": 12}}
    assert len(view) == 24
    assert [
        0 for s in view.shards for r in view.read(s.name, columns=("image",)) if len(r.members["image"]) == 0
    ] == []


def test_generated_images_without_classes_are_refused(tmp_path: Path):
    real = labelled(tmp_path / "real", TAIL, seed=0)
    generated = dataset(tmp_path / "generated", {"train": [{"png": png(c)} for c in colours(9, seed=1)]})
    with pytest.raises(ValueError, match="per: total"):
        augment(tmp_path, real, generated)
    said, view, _ = augment(tmp_path, real, generated, per="total", target=70)
    assert said["augmented"]["all"]["generated"] == 5
    assert len(view) == 70
    other = labelled(tmp_path / "other", {"b": 3, "a": 3}, seed=5)
    with pytest.raises(ValueError, match="number their classes differently"):
        augment(tmp_path, real, other, name="o")


@pytest.mark.parametrize("fields", [{"weight": 1.5}, {"target": 0}, {"max_ratio": -1.0}])
def test_fields_are_checked(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Augment(real="r", generated="g", **fields)


def test_top_up_arithmetic():
    assert top_up({"a": 100, "b": 50, "c": 0}, target=80, max_ratio=3.0) == {"a": 0, "b": 30, "c": 0}
    assert top_up({"a": 100, "b": 10}, target=None, max_ratio=0.5) == {"a": 0, "b": 5}
    assert top_up({ALL: 40}, target=None, max_ratio=3.0) == {ALL: 40}
    sizes = {str(n): int(s) for n, s in enumerate(np.arange(1, 101))}
    assert (
        max(size + top_up(sizes, target=None, max_ratio=1000.0)[name] for name, size in sizes.items()) == 100
    )
    assert (
        min(size + top_up(sizes, target=None, max_ratio=1000.0)[name] for name, size in sizes.items()) == 75
    )


def test_what_a_filter_drops_is_neither_trained_on_nor_taken(tmp_path: Path):
    from pipelines.stages.encode import Encode

    real = labelled(tmp_path / "real", {"common": 12, "rare": 4}, seed=0, held_out=4)
    generated = labelled(tmp_path / "generated", {"common": 6, "rare": 12}, seed=50)

    def half(name: str, of: Dataset) -> Dataset:
        """Keeps every other row of a shard."""
        infos = []
        for shard in of.shards:
            keys = of.index(shard.name).keys
            samples = [Sample(key=k, members={} if n % 2 else {"keep": b"1"}) for n, k in enumerate(keys)]
            pairs = [(Row(key=s.key), s) for s in samples]
            infos.append(write_shard(Storage.at(tmp_path / name), shard.name, pairs, split=shard.split))
        write_manifest(Storage.at(tmp_path / name), describe(infos, stage="filter"))
        return Dataset.open(Storage.at(tmp_path / name))

    keeps = {"keep": half("keep", real), "keep_generated": half("keep_generated", generated)}
    kept = {
        of: {
            k
            for s in d.shards
            for k in d.index(s.name).keys
            if d.index(s.name).member(d.index(s.name).keys.index(k), "keep")
        }
        for of, d in (("real", keeps["keep"]), ("generated", keeps["keep_generated"]))
    }
    session = ToySession({"real": real, "generated": generated, **keeps}, None, tmp_path)
    session.output = Storage.at(tmp_path / "view")
    said = Augment(real="r", generated="g", keep="k", keep_generated="h", target=20).run(session)
    write_manifest(session.output, {"stage": "augment", "fingerprint": "f", **said})
    view = Dataset.open(session.output)

    records = [r for s in view.shards for r in view.read(s.name, columns=("image",))]
    found = {of: {r.key for r in records if r.meta["source"] == of} for of in ("real", "generated")}
    assert found["real"] == kept["real"]
    assert {key.removeprefix("generated-") for key in found["generated"]} <= kept["generated"]
    assert sum(c["generated"] for c in said["augmented"].values()) == len(found["generated"]) > 0
    assert sum(c["real"] for c in said["augmented"].values()) == 8
    # A stage that reads the view does not count what it leaves out as rejected.
    stage, reasons = Encode(images="v", autoencoder="a"), []
    for shard in stage.plan({"images": view}):
        reasons += [row.reject for row in stage.rows({"images": view}, shard)]
    assert reasons.count("dropped") == len(reasons) - len(records) == 10
    assert set(reasons) == {None, "dropped"}
