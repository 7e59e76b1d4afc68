"""Planted truths: noise and wrong classes never earn "benefit", unseen real images do.

A class is eight drawings, of which few training images show few: what is not in them no loss can balance.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.storage import Storage
from diffusion.config import OptimizationConfig
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.shards import write_shard
from pipelines.stage import Row, Sample
from pipelines.stages.judge import Judge
from pipelines.verdict.arms import ARMS
from pipelines.verdict.trials import Trial
from pipelines.view import ViewRow, write_view
from tests.pipelines.tiny import TinySession, session

SIZE = 16
CLASSES = ["ones", "twos", "threes", "fours"]
REAL, OFFERED, HELD_OUT = (16, 8, 4, 2), 30, 40
"""Real training images of each class, offered ones of each, and test images of each."""
DRAWINGS = np.random.default_rng(9).normal(size=(4, 8, 4, 4, 3)).repeat(4, 2).repeat(4, 3)
"""Eight of each class, of 4x4 blocks."""


def drawing(label: int, draws: np.random.Generator) -> np.ndarray:
    """One of its class, in noise."""
    return 128 + 45 * DRAWINGS[label, draws.integers(8)] + draws.normal(0, 20, (SIZE, SIZE, 3))


def noise(label: int, draws: np.random.Generator) -> np.ndarray:
    return draws.uniform(0, 255, (SIZE, SIZE, 3))


def members(pixels: np.ndarray, label: int) -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return {"png": buffer.getvalue(), "cls": str(label).encode()}


def dataset(folder: Path, splits: dict[str, list[dict[str, bytes]]], classes: list[str] = CLASSES) -> Dataset:
    storage, infos = Storage.at(folder), []
    for number, (split, samples) in enumerate(splits.items()):
        keys = [f"{split}{n:04d}" for n in range(len(samples))]
        rows = [(Row(key=k), Sample(key=k, members=m)) for k, m in zip(keys, samples, strict=True)]
        infos.append(write_shard(storage, f"{number:05d}", rows, split=split))
    write_manifest(storage, describe(infos, stage="toy", fingerprint="f", classes=classes))
    return Dataset.open(storage)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    draws = np.random.default_rng(0)
    counts = {"train": REAL, "test": (HELD_OUT,) * 4}
    splits = {
        split: [members(drawing(c, draws), c) for c, n in enumerate(of) for _ in range(n)]
        for split, of in counts.items()
    }
    return dataset(tmp_path_factory.mktemp("real"), splits)


def offered(folder: Path, draw: Any, *, turn: int = 0, seed: int = 1) -> Dataset:
    """Images of `draw`; labelled with the class `turn` places on."""
    draws = np.random.default_rng(seed)
    made = [members(draw(c, draws), (c + turn) % 4) for c in range(4) for _ in range(OFFERED)]
    return dataset(folder, {"train": made})


def view(folder: Path, real: Dataset, generated: Dataset, *, weight: float = 1.0) -> Dataset:
    """What `augment` makes of both."""
    rows = [
        ViewRow(key=key, source="real", shard=shard.name, row=n)
        for shard in real.shards
        for n, key in enumerate(real.index(shard.name).keys)
    ]
    rows += [
        ViewRow(key=f"generated-{key}", source="generated", shard=shard.name, row=n, weight=weight)
        for shard in generated.shards
        for n, key in enumerate(generated.index(shard.name).keys)
    ]
    storage = Storage.at(folder)
    said = write_view(storage, {"real": real, "generated": generated}, rows)
    write_manifest(storage, {"stage": "augment", "fingerprint": "f", **said})
    return Dataset.open(storage)


STAGE = Judge(
    augmented="augmented",
    seeds=4,
    size=SIZE,
    width=8,
    batch=16,
    images_seen=640,
    optimization=OptimizationConfig(lr=1e-2, warmup=64, cooldown=320, ema=0.1),
    flips=False,
    bootstrap=1000,
    micro_batch=64,
)


def judged(folder: Path, augmented: Dataset, stage: Judge = STAGE, **inputs: Any) -> tuple[Any, TinySession]:
    given = session(folder, {"augmented": augmented, "generated": None, **inputs})
    return stage.run(given), given


@pytest.fixture(scope="module")
def helped(real: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset, Any, TinySession]:
    folder = tmp_path_factory.mktemp("helped")
    augmented = view(folder / "view", real, offered(folder / "offered", drawing))
    return folder, augmented, *judged(folder, augmented, STAGE)


def test_unseen_real_images_earn_benefit(helped: Any) -> None:
    said = helped[2]["verdict"]
    assert said["verdict"] == "benefit"
    assert min(gain["low"] for gain in said["gains"].values()) > 0
    assert said["arms"]["generated"]["macro"]["value"] > said["arms"]["real"]["macro"]["value"]


@pytest.mark.parametrize("what", [pytest.param("noise", marks=pytest.mark.slow), "wrong class"])
def test_what_teaches_nothing_earns_none(real: Dataset, tmp_path: Path, what: str) -> None:
    made = (
        offered(tmp_path / "made", noise) if what == "noise" else offered(tmp_path / "made", drawing, turn=1)
    )
    few = dataclasses.replace(STAGE, seeds=3)
    said = judged(tmp_path, view(tmp_path / "view", real, made), few)[0]["verdict"]
    assert said["verdict"] != "benefit"
    if what == "wrong class":
        assert said["verdict"] == "harm"
    assert said["arms"]["generated"]["macro"]["value"] < 0.5


def test_it_says_what_it_rests_on(helped: Any) -> None:
    folder, _, report, given = helped
    said, table = report["verdict"], report["table"]
    assert said == json.loads((folder / "output" / "verdict.json").read_bytes())
    assert {name: arm["images"] for name, arm in said["arms"].items()} == {
        "real": {"real": 30, "generated": 0},
        "class_balanced": {"real": 30, "generated": 0},
        "balanced_softmax": {"real": 30, "generated": 0},
        "augmented": {"real": 30, "generated": 120},
        "generated": {"real": 0, "generated": 120},
    }
    assert said["n"] == {"seeds": 4, "test": 160, "classes": 4, "bootstrap": 1000}
    assert {name: (of["real"], of["generated"]) for name, of in said["per_class"].items()} == dict(
        zip(CLASSES, [(16, 30), (8, 30), (4, 30), (2, 30)], strict=True)
    )
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert len(table["rows"]) == len(ARMS)
    assert "benefit" in table["says"]
    assert said["rule"] in table["says"]
    (picture,) = [e for e in given.events if e["kind"] == "picture"]
    assert picture["png"] == (folder / "output" / "verdict.png").read_bytes()
    assert Image.open(io.BytesIO(picture["png"])).height > 100
    done = [(e["done"], e["total"]) for e in given.events if e["kind"] == "progress"]
    assert done[-1] == (20 * 640, 20 * 640)


def test_finished_classifiers_are_not_trained_again(helped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds more: only those are trained, and those that were there answer as before."""
    folder, augmented, report, _ = helped
    asked: list[Trial] = []

    class Watched(TinySession):
        def map(self, factory: Any, items: Any) -> Iterator[Any]:
            asked.extend(items)
            return super().map(factory, items)

    def again(stage: Judge) -> Any:
        given = session(folder, {"augmented": augmented, "generated": None}, output="again")
        asked.clear()
        return stage.run(Watched(**vars(given)))["verdict"]

    assert again(STAGE) == report["verdict"]
    assert asked == []
    more = again(dataclasses.replace(STAGE, seeds=5))
    assert {trial.number for trial in asked} == {4}
    assert len(asked) == len(ARMS)
    for name, arm in report["verdict"]["arms"].items():
        assert more["arms"][name]["seeds"][:4] == arm["seeds"]
    assert {"seeds", "bootstrap"} == set(STAGE.length)


def test_choices_are_made_on_validation_images_alone(real: Dataset, tmp_path: Path) -> None:
    """Test labels that are turned: a choice that looked at them would take what learns nothing."""
    draws = np.random.default_rng(5)
    splits = {
        "train": [members(drawing(c, draws), c) for c in range(4) for _ in range(24)],
        "validation": [members(drawing(c, draws), c) for c in range(4) for _ in range(20)],
        "test": [members(drawing(c, draws), (c + 1) % 4) for c in range(4) for _ in range(20)],
    }
    turned = dataset(tmp_path / "real", splits)
    augmented = view(tmp_path / "view", turned, offered(tmp_path / "made", drawing, turn=1))
    stage = dataclasses.replace(
        STAGE, lrs=(1e-7, 1e-2), weights=(8.0, 0.1), seeds=2, choosing_seeds=1, images_seen=320
    )
    said = judged(tmp_path, augmented, stage)[0]["verdict"]
    assert said["arms"]["real"]["lr"] == 1e-2
    assert (said["arms"]["augmented"]["lr"], said["arms"]["augmented"]["weight"]) == (1e-2, 0.1)
    assert said["arms"]["real"]["macro"]["value"] < 0.3, (
        "it is judged on the test images as they are labelled"
    )


def test_all_that_was_generated_can_be_judged_alone(real: Dataset, tmp_path: Path) -> None:
    made = offered(tmp_path / "made", drawing)
    few = dataset(tmp_path / "few", {"train": [members(drawing(0, np.random.default_rng(3)), 0)]})
    augmented = view(tmp_path / "view", real, few)
    short = dataclasses.replace(STAGE.optimization, warmup=0, cooldown=0)
    stage = dataclasses.replace(STAGE, seeds=2, images_seen=32, optimization=short)
    said = judged(tmp_path, augmented, stage, generated=made)[0]["verdict"]
    assert said["arms"]["generated"]["images"] == {"real": 0, "generated": 4 * OFFERED}
    assert said["arms"]["augmented"]["images"] == {"real": 30, "generated": 1}


@pytest.mark.parametrize(
    ("splits", "classes", "generated", "hint"),
    [
        (("train", "test"), [], True, "no classes"),
        (("train",), CLASSES, True, "no labelled image in the test split"),
        (("train", "test"), CLASSES, False, "no generated image"),
        (("train", "test"), [*CLASSES, "none"], True, "no real training image of none"),
    ],
)
def test_what_cannot_be_judged_is_said(
    tmp_path: Path, splits: Any, classes: Any, generated: bool, hint: str
) -> None:
    draws = np.random.default_rng(0)
    samples = [members(noise(c, draws), c) for c in range(4)]
    given = dataset(tmp_path / "real", dict.fromkeys(splits, samples), classes)
    made = dataset(tmp_path / "made", {"train": samples}, classes)
    if generated:
        given = view(tmp_path / "view", given, made)
    with pytest.raises(ValueError, match=hint):
        judged(tmp_path, given)


def test_choosing_needs_a_validation_split(tmp_path: Path) -> None:
    samples = [members(noise(c, np.random.default_rng(c)), c) for c in range(4)]
    given = dataset(tmp_path / "real", {"train": samples, "test": samples})
    augmented = view(tmp_path / "view", given, dataset(tmp_path / "made", {"train": samples}))
    with pytest.raises(ValueError, match="validation split"):
        judged(tmp_path, augmented, dataclasses.replace(STAGE, weights=(0.3, 1.0)))
    other = dataset(tmp_path / "other", {"train": samples}, CLASSES[::-1])
    with pytest.raises(ValueError, match="numbers its classes differently"):
        judged(tmp_path, augmented, generated=other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": 1},
        {"width": 12},
        {"size": 30},
        {"beta": 1.0},
        {"shift": 16},
        {"lrs": (0.0,)},
        {"bootstrap": 9},
    ],
)
def test_fields_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(STAGE, **wrong)
