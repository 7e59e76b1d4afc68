from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.storage import Storage
from diffusion.autoencoders.identity import IdentityAutoencoder
from diffusion.latents import LatentStatistics
from pipelines import models
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.detection import overlay
from pipelines.sampling import LatentModel
from pipelines.shards import write_shard
from pipelines.stage import Row, Sample
from pipelines.stages.detect import Detect
from tests.diffusion.exact import gaussian

SIDE, STD = 8, 0.3
COUNTS = {"train": 40, "validation": 60, "test": 40}


def picture(kind: int, rng: np.random.Generator) -> bytes:
    """Normal ones are N(0, STD^2) about grey; strange ones have a bright quarter."""
    values = STD * rng.normal(size=(SIDE, SIDE, 3))
    if kind:
        values[:4, :4] = 0.9
    buffer = io.BytesIO()
    Image.fromarray(np.round((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Snapshot:
    """Stands for one whose training was perfect."""

    def digest(self) -> str:
        return "exact"


class Exact:
    def __init__(self, folder: Any, **_: Any) -> None:
        self.model = LatentModel(
            denoiser=gaussian(0.0, torch.full((3, SIDE, SIDE), STD)),
            autoencoder=IdentityAutoencoder(),
            statistics=LatentStatistics(mean=(0.0,) * 3, std=(1.0,) * 3),
            shape=(3, SIDE, SIDE),
            classes=0,
            text_width=None,
            device=torch.device("cpu"),
        )


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(models, "Generator", Exact)
    storage, rng, shards = Storage.at(tmp_path / "images"), np.random.default_rng(0), []
    for number, (split, count) in enumerate(COUNTS.items()):
        pairs = []
        for n in range(count):
            kind = int(split == "test" and n % 4 == 0)
            key = hashlib.sha256(f"{split}{n}".encode()).hexdigest()[:20]
            sample = Sample(key=key, members={"png": picture(kind, rng), "cls": str(kind).encode()})
            pairs.append((Row(key=key), sample))
        pairs.sort(key=lambda pair: pair[0].key)
        shards.append(write_shard(storage, f"{number}0000", pairs, split=split))
    write_manifest(storage, describe(shards, stage="test", classes=["plain", "odd"]))
    return {"images": Dataset.open(storage), "model": Snapshot()}


def detected(inputs: dict[str, Any], **fields: Any) -> tuple[Detect, dict[str, Sample]]:
    options = {"bank": 0, "likelihood_steps": 8, "levels": (0.5, 1.0), "micro_batch": 16, "bootstrap": 100}
    stage = Detect(images="images", model="model", **{**options, **fields})
    call = stage.open(inputs)
    made = {s.key: s for shard in stage.plan(inputs) for s in call(shard, stage.rows(inputs, shard))}
    return stage, made


def finished(folder: Path, stage: Detect, inputs: dict[str, Any], made: dict[str, Sample]) -> dict[str, Any]:
    storage = Storage.at(folder)
    pairs = [(Row(key=key), made[key]) for key in sorted(made)]
    shard = write_shard(storage, "20000", pairs, split="test")
    write_manifest(storage, describe([shard], stage="detect"))
    return stage.finish(inputs, Dataset.open(storage))


def test_what_is_strange_is_told_from_what_is_normal(inputs: dict[str, Any], tmp_path: Path) -> None:
    stage, made = detected(inputs, anomalous=("odd",))
    assert len(made) == COUNTS["test"]
    odd = {key: sample.meta["label"] == "odd" for key, sample in made.items()}
    for name in ("denoising", "score_norm", "likelihood"):
        found = {key: json.loads(s.members["json"])["scores"][name] for key, s in made.items()}
        assert min(found[k]["score"] for k in made if odd[k]) > max(
            found[k]["score"] for k in made if not odd[k]
        )
        assert all(found[k]["percentile"] == 100 for k in made if odd[k])
        # Held-out normal images are where normal images are: percentiles are even.
        plain = [found[k]["percentile"] for k in made if not odd[k]]
        assert 30 < np.mean(plain) < 70
    said = finished(tmp_path / "out", stage, inputs, made)
    areas = said["detection"]["auroc"]
    assert {name: area["value"] for name, area in areas.items()} == dict.fromkeys(areas, pytest.approx(1.0))
    assert said["detection"]["normal"] == 30
    assert [row[0] for row in said["report"]["table"]["rows"]] == ["denoising", "score_norm", "likelihood"]


def test_heat_is_where_it_is_strange(inputs: dict[str, Any]) -> None:
    _, made = detected(inputs, likelihood_steps=0)
    for sample in made.values():
        heat = np.asarray(Image.open(io.BytesIO(sample.members["heat.png"])).convert("RGB")).astype(int)
        redness = heat[..., 0] - heat[..., 2]
        if sample.meta["label"] == "odd":
            assert redness[:3, :3].mean() > 20 + redness[5:, 5:].mean()


def test_scores_do_not_depend_on_company(inputs: dict[str, Any]) -> None:
    stage, whole = detected(inputs)
    (shard,) = stage.plan(inputs)
    for sample in stage.open(inputs)(shard, stage.rows(inputs, shard)[7:11]):
        assert sample.members == whole[sample.key].members
    _, some = detected(inputs, count=9)
    assert len(some) == 9
    assert all(some[key].members == whole[key].members for key in some)
    few = Detect(images="images", model="model", normals=30, bank=0)
    assert few.rows(inputs, shard)[0].reads != stage.rows(inputs, shard)[0].reads


def test_neighbours_are_a_baseline(inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.scoring.features import EfficientNetFeatures

    def build(_: Any) -> Any:
        return lambda images: np.stack([np.asarray(i, np.float32).mean((0, 1)) for i in images])

    monkeypatch.setattr(EfficientNetFeatures, "build", build)
    monkeypatch.setattr(EfficientNetFeatures, "identity", lambda _: "means")
    _, made = detected(inputs, bank=20, likelihood_steps=0)
    odd = [s.meta["neighbours"] for s in made.values() if s.meta["label"] == "odd"]
    plain = [s.meta["neighbours"] for s in made.values() if s.meta["label"] == "plain"]
    assert min(odd) > max(plain)


def test_overlay_keeps_what_is_cool_and_reddens_what_is_hot() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    heat = np.zeros((4, 4))
    assert np.array_equal(overlay(image, heat), image)
    heat[:] = 100
    assert overlay(image, heat)[0, 0].tolist() == [208, 62, 52]


def test_mistakes_are_told(inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="both scored and calibrated on"):
        Detect(images="images", model="model", normal="test")
    with pytest.raises(ValueError, match="anomalous names 'tree'; the classes are plain, odd"):
        detected(inputs, anomalous=("tree",))
    with pytest.raises(ValueError, match="has no split 'tests'; there are test, train, validation"):
        detected(inputs, splits=("tests",))
    with pytest.raises(ValueError, match="noise over signal"):
        Detect(images="images", model="model", levels=(0.0,))
