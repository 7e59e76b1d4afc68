"""Ingest of a long tail: what is left out is counted, and nothing else changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipelines.runner.fingerprint import digest
from pipelines.sources import FolderSource
from pipelines.sources.long_tail import LongTail
from pipelines.sources.split import Split
from pipelines.stages.ingest import Ingest
from tests.pipelines.sources import corpus
from tests.pipelines.stages.test_ingest import cache, emoji, ingest, layout

__all__ = ["cache"]  # a fixture: the cache of this machine is left alone


def labelled_folder(folder: Path, counts: dict[str, int]) -> None:
    for number, (label, count) in enumerate(counts.items()):
        for n in range(count):
            path = folder / label / f"{label}{n:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(corpus.save(corpus.scene(3000 + 100 * number + n, (24, 24)), "PNG"))


def test_a_long_tail_counts_what_it_leaves_out_and_rejects_nothing(tmp_path: Path) -> None:
    labelled_folder(tmp_path / "in", {"a": 30, "b": 30, "c": 30})
    (tmp_path / "in" / "c" / "broken.png").write_bytes(b"no picture")
    source = FolderSource(path=tmp_path / "in")
    plain = Ingest(source=source, size=16, split=Split(validation=0, test=0.2))
    tail = dataclasses.replace(plain, long_tail=LongTail(head=16, ratio=4, validation=2))
    whole, cut = layout(plain), layout(tail)
    assert cut.keys() < whole.keys()
    assert {k: v for k, v in cut.items() if v[1] == "test"} == {
        k: v for k, v in whole.items() if v[1] == "test"
    }
    # Which images there are changes none of them: those of the whole are copied, not made again.
    assert {k: v[2] for k, v in cut.items()} == {k: whole[k][2] for k in cut}
    assert plain.work() == tail.work()

    dataset = ingest(tail, tmp_path / "out")
    counts = {
        split: {
            name: sum(
                r.members["cls"] == str(n).encode()
                for s in dataset.shards
                if s.split == split
                for r in dataset.read(s.name, columns=("cls",))
            )
            for n, name in enumerate("abc")
        }
        for split in ("train", "validation")
    }
    assert counts == {"train": {"a": 16, "b": 8, "c": 4}, "validation": {"a": 2, "b": 2, "c": 2}}
    left_out = dataset.manifest["left_out"]["long_tail"]
    said = dataset.manifest["counts"]
    assert said["reasons"] == {"not_an_image": 1}
    assert said["inputs"] + sum(left_out.values()) == 91
    assert left_out["c"] > left_out["a"] > 0
    assert sum(dataset.manifest["statistics"]["labels"].values()) == said["inputs"]


def test_an_unseen_class_is_in_the_test_split_alone(tmp_path: Path) -> None:
    labelled_folder(tmp_path / "in", {"a": 20, "b": 20, "c": 20})
    source = FolderSource(path=tmp_path / "in")
    plain = Ingest(source=source, size=16, split=Split(validation=0.2, test=0.3))
    stage = dataclasses.replace(plain, unseen=("b",))
    whole, cut = layout(plain), layout(stage)
    assert {k for k, v in whole.items() if v[1] == "test"} == {k for k, v in cut.items() if v[1] == "test"}
    dataset = ingest(stage, tmp_path / "out")
    assert dataset.classes == ["a", "b", "c"]
    found = {
        split: {
            r.members["cls"]
            for s in dataset.shards
            if s.split == split
            for r in dataset.read(s.name, columns=("cls",))
        }
        for split in dataset.splits
    }
    assert found == {"train": {b"0", b"2"}, "validation": {b"0", b"2"}, "test": {b"0", b"1", b"2"}}
    left_out = dataset.manifest["left_out"]["unseen"]
    assert left_out["a"] == left_out["c"] == 0
    assert left_out["b"] + dataset.manifest["counts"]["inputs"] == 60
    with pytest.raises(ValueError, match="unseen names 'd', and the source has a, b, c"):
        layout(dataclasses.replace(plain, unseen=("d",)))

    tail = dataclasses.replace(stage, long_tail=LongTail(head=6, ratio=2))
    both = ingest(tail, tmp_path / "both").manifest["left_out"]
    assert both["unseen"] == left_out
    assert both["long_tail"]["b"] == 0


def test_outputs_without_a_long_tail_keep_their_names(tmp_path: Path) -> None:
    source = FolderSource(path=tmp_path)
    assert "long_tail" not in Ingest(source=source).meaning()
    assert Ingest(source=source, long_tail=LongTail()).meaning()["long_tail"] == {
        "head": 500, "ratio": 100.0, "validation": 0,
    }  # fmt: skip
    # As it was before there were long tails: another digest, and every finished dataset is made again.
    assert digest(Ingest(source=source).meaning()) == "35ba82bfdb4a4c48bee16201a57d9a1a"


def test_a_long_tail_needs_labels(tmp_path: Path) -> None:
    emoji(tmp_path / "in", 3)
    stage = Ingest(source=FolderSource(path=tmp_path / "in"), size=16, long_tail=LongTail())
    with pytest.raises(ValueError, match="gives no labels"):
        stage.plan({})
