"""The `keep` column: each copy falls, names its twin, and leaks fall out of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.storage import LocalStorage, Storage
from pipelines.arrays import to_npy
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.duplicates.methods import Exact, Method, Perceptual, Semantic
from pipelines.shards import write_shard
from pipelines.stage import Row, Sample
from pipelines.stages.deduplicate import Deduplicate
from tests.pipelines.duplicates.copies import COPIES, emoji, png
from tests.pipelines.stages.test_evaluate import ToySession

COUNT = 6
"""Originals in each split."""
KINDS = list(COPIES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> None:
    """The tests of `evaluate` share this module's session and move the cache; weights are wanted here."""


def dataset(folder: Path, shards: dict[str, tuple[str, list[Sample]]], **fields: Any) -> Dataset:
    """`shards`: name -> split and samples."""
    storage = Storage.at(folder)
    infos = []
    for name, (split, samples) in shards.items():
        pairs = [(Row(key=s.key), s) for s in sorted(samples, key=lambda s: s.key)]
        infos.append(write_shard(storage, name, pairs, split=split))
    write_manifest(storage, describe(infos, stage="toy", fingerprint="f", **fields))
    return Dataset.open(storage)


def sample(key: str, image: Image.Image | bytes, **meta: int) -> Sample:
    return Sample(key=key, members={"png": image if isinstance(image, bytes) else png(image)}, meta=meta)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, tuple[str, str]]]:
    """Two shards of training and one of test; copy -> (the twin that is to stay, kind)."""
    pictures = list(emoji(1, 2 * COUNT))
    train = [sample(f"a{n:02d}", image) for n, (_, image) in enumerate(pictures[:COUNT])]
    test = [sample(f"t{n:02d}", image) for n, (_, image) in enumerate(pictures[COUNT:])]
    truth: dict[str, tuple[str, str]] = {}
    more = []
    for n, (_, image) in enumerate(pictures):
        kind = KINDS[n % len(KINDS)]
        key = f"b{n:02d}"
        more.append(sample(key, COPIES[kind](image, np.random.default_rng(n))))
        truth[key] = (train[n].key if n < COUNT else test[n - COUNT].key, kind)
    more += [sample("c0", train[3].members["png"]), sample("c1", test[3].members["png"])]
    truth |= {"c0": ("a03", "exact"), "c1": ("t03", "exact")}
    more.append(Sample(key="d0", reject="truncated"))
    more.append(sample("d1", b"\x89PNG\r\n\x1a\n and nothing that decodes"))
    shards = {"00000": ("train", train), "00001": ("train", more), "20000": ("test", test)}
    return dataset(tmp_path_factory.mktemp("planted") / "images", shards), truth


def run(
    folder: Path, images: Dataset, by: Method, *, backwards: bool = False, features: Dataset | None = None
) -> tuple[dict[str, Any], Dataset, ToySession]:
    output = Storage.at(folder / "out")
    session = ToySession(
        {"images": images, "features": features},
        output,
        folder,
        backwards=backwards,
        checkpoints=Storage.at(folder / "checkpoints"),
    )
    said = Deduplicate(images="x", features="y" if features else None, by=by).run(session)
    write_manifest(output, {"stage": "deduplicate", "fingerprint": "f", **said})
    return said, Dataset.open(output), session


def rows(found: Dataset) -> dict[str, dict[str, Any]]:
    return {
        key: {**index.meta[n], "keep": index.member(n, "keep") is not None, "reason": index.reasons[n]}
        for shard in found.shards
        for index in [found.index(shard.name)]
        for n, key in enumerate(index.keys)
    }


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_every_planted_twin_names_its_original(
    tmp_path: Path, planted: tuple[Dataset, dict[str, tuple[str, str]]]
) -> None:
    images, truth = planted
    said, found, session = run(tmp_path, images, Semantic())
    assert [(s.name, s.split, s.samples) for s in found.shards] == [
        (s.name, s.split, s.samples) for s in images.shards
    ]
    made = rows(found)
    for key, (twin, kind) in truth.items():
        row = made[key]
        assert (row["keep"], row["twin"], row["dropped"]) == (False, twin, "duplicate"), (key, kind)
        assert row["duplicate"] == ("exact" if kind == "exact" else "semantic")
        assert row["similarity"] == 1 if kind == "exact" else 0.9 <= row["similarity"] <= 1
        assert row["cluster"] == twin
    for key in set(made) - set(truth) - {"d0"}:
        assert made[key]["keep"], key
        assert (made[key]["twin"], made[key]["duplicate"], made[key]["cluster"]) == ("", "", key)
        assert "dropped" not in made[key]
    assert made["d0"]["reason"] == "truncated"
    kept = [r for s in found.shards for r in found.read(s.name, columns=("keep",))]
    assert {r.members["keep"] for r in kept} == {b"1"}
    assert len(kept) == 2 * COUNT + 1
    assert said["statistics"]["leaks"] == {
        "removed": COUNT + 1, "removed_exact": 1, "between_held_out_splits": 0
    }  # fmt: skip
    assert said["statistics"]["dropped"] == {"exact": 2, "near": 2 * COUNT}
    assert said["statistics"]["not_looked_at"] == 1
    assert any(event["kind"] == "picture" for event in session.events)
    assert not files(tmp_path / "checkpoints"), "what the passes kept is gone"


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_killed_anywhere_it_ends_in_the_same_bytes(
    tmp_path: Path,
    planted: tuple[Dataset, dict[str, tuple[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the order of the tasks, and after deaths at many writes; features are made once."""
    images, _ = planted
    method = Semantic(partition=100, probes=2, neighbours=1)
    run(tmp_path / "whole", images, method)
    whole = files(tmp_path / "whole" / "out")
    from pipelines.duplicates.features import Features

    calls: list[int] = []
    embed = Features.__call__
    monkeypatch.setattr(
        Features, "__call__", lambda self, data: (calls.append(len(data)), embed(self, data))[1]
    )
    put = LocalStorage.put_if_absent
    lives = 0

    def mortal(self: LocalStorage, name: str, source: Any) -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return put(self, name, source)

    left, done = 0, False
    while not done:
        lives, left = lives + 1, 6 + 5 * lives
        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "put_if_absent", mortal)
            try:
                run(tmp_path / "broken", images, method, backwards=lives % 2 == 1)
                done = True
            except Killed:
                assert lives < 40
    assert lives > 2
    assert files(tmp_path / "broken" / "out") == whole
    assert sum(calls) <= 2 * (4 * COUNT + 3), "shards that were looked at are looked at again"


@pytest.mark.parametrize("by", [Exact(), Perceptual()])
def test_the_cheaper_ways(
    tmp_path: Path, planted: tuple[Dataset, dict[str, tuple[str, str]]], by: Exact | Perceptual
) -> None:
    images, truth = planted
    _, found, _ = run(tmp_path, images, by)
    made = rows(found)
    easy = {"exact"} if by.kind == "exact" else {"exact", "resized", "recompressed", "mirrored"}
    dropped = {key: row["twin"] for key, row in made.items() if row["reason"] is None and not row["keep"]}
    for key, (twin, kind) in truth.items():
        if kind in easy:
            assert dropped.get(key) == twin, (key, kind)
    assert set(dropped) <= set(truth)


def test_held_out_copies_stay_in_both_splits(tmp_path: Path) -> None:
    (_, one), (_, other) = emoji(1, 2)
    small = one.resize((64, 64))
    images = dataset(
        tmp_path / "images",
        {
            "00000": ("train", [sample("a", one, width=256, height=256), sample("z", other)]),
            "10000": ("validation", [sample("b", one.resize((200, 200)))]),
            "20000": (
                "test",
                [sample("c", small, width=64, height=64), sample("d", one, width=256, height=256)],
            ),
        },
    )
    said, found, _ = run(tmp_path, images, Semantic())
    made = rows(found)
    assert {key for key, row in made.items() if row["keep"]} == {"b", "d", "z"}
    assert (made["c"]["twin"], made["a"]["twin"], made["a"]["duplicate"]) == ("d", "d", "exact")
    assert said["statistics"]["leaks"]["between_held_out_splits"] == 1


def test_features_of_another_stage_are_taken(tmp_path: Path) -> None:
    pictures = [image for _, image in emoji(1, 3)]
    pairs = [pictures[0], COPIES["cropped"](pictures[0], np.random.default_rng(0)), pictures[1], pictures[2]]
    images = dataset(
        tmp_path / "images", {"00000": ("train", [sample(f"k{n}", p) for n, p in enumerate(pairs)])}
    )
    # the first three are candidates, of which one pair agrees when looked at; k3 has no vector
    vectors = np.array([[1, 0], [1, 0.1], [1, 0.2]], np.float16) * 3
    held = [Sample(key=f"k{n}", members={"image.npy": to_npy(v)}) for n, v in enumerate(vectors)]
    features = dataset(
        tmp_path / "features", {"00000": ("train", [*held, Sample(key="k3", reject="no_image")])}
    )
    said, found, _ = run(tmp_path, images, Semantic(), features=features)
    assert [row["twin"] for row in rows(found).values()] == ["", "k0", "", ""]
    assert said["statistics"]["not_looked_at"] == 1
    _, found, _ = run(tmp_path / "unverified", images, Semantic(verify=None), features=features)
    assert [row["twin"] for row in rows(found).values()] == ["", "k0", "k0", ""]
    other = dataset(tmp_path / "other", {"00000": ("train", held)})
    with pytest.raises(ValueError, match="embed the images"):
        run(tmp_path / "third", images, Semantic(), features=other)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="does not use"):
        Deduplicate(images="x", features="y", by=Exact())
    for wrong in ({"cosine": 0.0}, {"verify": 1.5}, {"neighbours": 0}, {"partition": 5}):
        with pytest.raises(ValueError, match="must be"):
            Semantic(**wrong)
    with pytest.raises(ValueError, match="0 to 7"):
        Perceptual(distance=8)
