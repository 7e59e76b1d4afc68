"""The gate on models whose quality is known: each draws its own Gaussian, one of them that of the images."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.storage import Storage
from diffusion.autoencoders.identity import IdentityAutoencoder
from diffusion.config import DiTConfig, EulerConfig, GuidanceConfig
from diffusion.latents import LatentStatistics
from diffusion.noise import RectifiedFlow
from pipelines import pipeline
from pipelines.arrays import to_npy
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.models import SnapshotFolder
from pipelines.registry import CHAMPION, Registry
from pipelines.sampling import LatentModel
from pipelines.shards import write_shard
from pipelines.stage import Row, Sample, jsonable
from pipelines.stages.promote import Promote
from tests.pipelines.toys import ToyRecipe

SIZE, STD = 4, 0.2
MEANS = {"dark": -0.5, "light": 0.4}
"""Of the pixels of each class, in [-1, 1]."""
CLASSES = list(MEANS)
NETWORK = DiTConfig(width=16, depth=1, heads=2, patch=2)


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Mean and spread of each colour as features."""

    kind: str = "colours"
    label: str = "Colours"

    def identity(self) -> str:
        return "colours-1"

    def build(self) -> Callable[[Sequence[Image.Image]], np.ndarray]:
        def extract(images: Sequence[Image.Image]) -> np.ndarray:
            pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
            return np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], axis=1)

        return extract


@dataclass(frozen=True, eq=False)
class Gaussian:
    """E[x | x_t, class] of pixels N(mean of the class + error, STD^2): perfect where the error is 0."""

    error: float
    schedule: RectifiedFlow = field(default_factory=RectifiedFlow)

    def __call__(self, x_t: torch.Tensor, t: Any, conditioning: Any) -> torch.Tensor:
        means = torch.tensor([*MEANS.values(), 0.0]) + self.error
        mean = means[conditioning.label][:, None, None, None]
        alpha, sigma = self.schedule.spread(t, x_t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)


class Drawer:
    """What `pipelines.models.Generator` is to a snapshot of this file."""

    def __init__(self, folder: SnapshotFolder) -> None:
        self.classes = CLASSES
        self.model = LatentModel(
            denoiser=Gaussian(float(folder.record["error"])),  # type: ignore[arg-type]
            autoencoder=IdentityAutoencoder(),
            statistics=LatentStatistics(mean=(0.0,) * 3, std=(1.0,) * 3),
            shape=(3, SIZE, SIZE),
            classes=len(CLASSES),
            text_width=None,
            device=torch.device("cpu"),
        )


def snapshot(folder: Path, error: float, **changes: Any) -> str:
    storage = Storage.at(folder)
    files = {"denoiser.safetensors": hashlib.sha256(str(error).encode()).hexdigest()}
    record = {
        "task": "denoiser",
        "error": str(error),
        "network": jsonable(NETWORK),
        "autoencoder": {"kind": "identity"},
        "statistics": {"mean": [0.0] * 3, "std": [1.0] * 3},
        "latent_shape": [3, SIZE, SIZE],
        "classes": CLASSES,
        "images_seen": 100,
        "files": files,
    }
    said = {"stage": "train", "fingerprint": folder.name, "snapshot": {**record, **changes}}
    write_manifest(storage, said, kind="snapshot")
    return storage.url


def datasets(folder: Path, *, test_mean: float = 0.0) -> dict[str, str]:
    """Images of both classes and their latents; the test split's are shifted by `test_mean`."""
    draws = np.random.default_rng(0)
    images, latents = Storage.at(folder / "images"), Storage.at(folder / "latents")
    infos: tuple[list[Any], list[Any]] = ([], [])
    for number, (split, count) in enumerate({"train": 16, "validation": 64, "test": 16}.items()):
        rows: tuple[list[Any], list[Any]] = ([], [])
        for n in range(count):
            label = n % len(CLASSES)
            pixels = MEANS[CLASSES[label]] + STD * draws.normal(size=(3, SIZE, SIZE))
            pixels += test_mean if split == "test" else 0.0
            levels = np.clip((pixels + 1) * 127.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(levels)).save(buffer, format="PNG")
            members = {"png": buffer.getvalue(), "cls": str(label).encode()}
            moments = np.concatenate([pixels, np.zeros_like(pixels)]).astype(np.float16)
            key = f"{split}{n:03d}"
            rows[0].append((Row(key=key), Sample(key=key, members=members)))
            rows[1].append((Row(key=key), Sample(key=key, members={"moments.npy": to_npy(moments)})))
        for storage, found, made in zip((images, latents), infos, rows, strict=True):
            found.append(write_shard(storage, f"{number:05d}", made, split=split))
    write_manifest(images, describe(infos[0], stage="toy", fingerprint="f", classes=CLASSES))
    write_manifest(latents, describe(infos[1], stage="toy", fingerprint="f"))
    assert len(Dataset.open(images)) == 96
    return {"images": images.url, "latents": latents.url}


@dataclass
class Gate:
    """A store, its images, and a recipe of one gate."""

    store: Storage
    inputs: dict[str, str]

    def recipe(self, candidate: str, **changes: Any) -> ToyRecipe:
        fields: dict[str, Any] = {
            "model": "tones",
            "features": Colours(),
            "count": 64,
            "untrained": 32,
            "losses": 32,
            "draws": 2,
            "bootstrap": 200,
            "sampler": EulerConfig(steps=8),
            "guidance": GuidanceConfig(scale=1.0),
        }
        return ToyRecipe({"gate": Promote(candidate=candidate, **self.inputs, **{**fields, **changes})})

    def run(self, candidate: str, **changes: Any) -> list[str]:
        recipe = self.recipe(candidate, **changes)
        return list(pipeline.run(recipe, self.store, executor="inline", record=False).ran)

    def report(self, candidate: str, **changes: Any) -> dict[str, Any]:
        """What the finished gate says."""
        planned = pipeline.plan(self.recipe(candidate, **changes), self.store)["gate"]
        assert planned.state == "done"
        assert planned.folder is not None
        return json.loads(planned.folder.read("manifest.json"))["report"]

    @property
    def registry(self) -> Registry:
        return Registry.of(self.store)

    @property
    def champion(self) -> int | None:
        found = self.registry.at("tones", CHAMPION)
        return found.number if found else None


@pytest.fixture
def gate(mlflow_store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pipelines.models.Generator", Drawer)
    return Gate(mlflow_store, datasets(tmp_path))


def test_the_better_one_is_champion_and_the_worse_one_never(gate: Gate, tmp_path: Path) -> None:
    poor, good, worse = (
        snapshot(tmp_path / name, error) for name, error in (("poor", 0.15), ("good", 0.0), ("worse", 0.2))
    )
    assert gate.run(poor) == ["gate"]
    first = gate.report(poor)
    assert (first["promoted"], first["before"], gate.champion) == (True, None, 1)
    assert "the first" in first["says"]

    assert gate.run(good) == ["gate"]
    second = gate.report(good)
    assert (second["promoted"], second["before"], gate.champion) == (True, 1, 2)
    gain = second["figures"]["gain"]
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert gain["value"] == pytest.approx(
        second["figures"]["champion"]["value"] - second["figures"]["candidate"]["value"]
    )
    assert second["figures"]["loss"]["rise"]["high"] < 0

    assert gate.run(worse) == ["gate"]
    third = gate.report(worse)
    assert (third["promoted"], third["before"], gate.champion) == (False, 2, 2)
    assert "is not promoted" in third["table"]["says"]

    tags = {v.number: v.tags for v in gate.registry.versions("tones")}
    assert tags[2]["promoted_by"].startswith("promote (")
    assert tags[2]["champion_before"] == "1"
    assert tags[2]["promoted_why"] in second["says"]
    assert float(tags[2]["kid"]) == pytest.approx(second["metrics"]["kid"], rel=1e-5)
    assert (tags[2]["gate"], tags[3]["gate"]) == ("promoted", "not promoted")
    drawn = gate.registry.picture(gate.registry.resolve("models:/tones/2"))
    assert drawn is not None
    assert drawn[:4] == b"\x89PNG"
    # what is finished does nothing, though the champion is another one than it was
    for candidate in (good, worse):
        assert gate.run(candidate) == []
    # and the first one, held to the champion of today, is found worse
    assert gate.run(poor) == ["gate"]
    assert gate.champion == 2


def test_equal_models_do_not_take_turns(gate: Gate, tmp_path: Path) -> None:
    """The same Gaussian under other weights draws the same images: there is no gain to show."""
    one = snapshot(tmp_path / "one", 0.1)
    two = snapshot(tmp_path / "two", 0.1, files={"denoiser.safetensors": "other"})
    for candidate in (one, two):
        gate.run(candidate)
    assert gate.champion == 1
    assert gate.report(two)["figures"]["gain"]["value"] == 0.0


def test_what_draws_like_an_untrained_network_is_not_even_the_first(gate: Gate, tmp_path: Path) -> None:
    hopeless = snapshot(tmp_path / "hopeless", 30.0)
    gate.run(hopeless)
    assert gate.champion is None
    assert "no better than its network untrained" in gate.report(hopeless)["says"]


def test_losses_that_are_no_numbers_are_an_answer(gate: Gate, tmp_path: Path) -> None:
    broken = snapshot(tmp_path / "broken", float("inf"))
    assert gate.run(broken) == ["gate"]
    assert gate.champion is None
    assert "not finite" in gate.report(broken)["says"]


@pytest.mark.parametrize("moment", ["before the alias", "after the alias"])
def test_a_gate_that_is_cut_off_ends_the_same(
    gate: Gate, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor, good = snapshot(tmp_path / "poor", 0.15), snapshot(tmp_path / "good", 0.0)
    gate.run(poor)
    point = Registry.point

    def cut(self: Registry, version: Any, alias: str) -> None:
        if alias != CHAMPION:
            point(self, version, alias)
            return
        if moment == "after the alias":
            point(self, version, alias)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "point", cut)
        with pytest.raises(KeyboardInterrupt):
            gate.run(good)
    assert gate.champion == (2 if moment == "after the alias" else 1)
    assert gate.run(good) == ["gate"]
    said = gate.report(good)
    assert (said["promoted"], said["version"], said["before"], gate.champion) == (True, 2, 1, 2)
    assert len(gate.registry.versions("tones")) == 2
    assert gate.run(good) == []


def test_the_test_split_decides_nothing(gate: Gate, tmp_path: Path) -> None:
    good = snapshot(tmp_path / "good", 0.0)
    gate.run(good)
    figures = gate.report(good)["figures"]
    shifted = datasets(tmp_path / "shifted", test_mean=3.0)
    other = Gate(Storage.at(tmp_path / "other"), shifted)
    other.run(good)
    assert other.report(good)["figures"] == figures


def test_a_champion_that_changed_meanwhile_is_noticed(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("poor", 0.2), ("other", 0.15), ("good", 0.0)
    poor, other, good = (snapshot(tmp_path / name, error) for name, error in names)
    gate.run(poor)
    recipe = gate.recipe(good)
    plan = pipeline.plan(recipe, gate.store)
    assert plan["gate"].sources["champion"].version == 1  # type: ignore[union-attr]
    register = Registry.register

    def meanwhile(self: Registry, *words: Any, **more: Any) -> Any:
        monkeypatch.undo()
        monkeypatch.setattr("pipelines.models.Generator", Drawer)
        made = SnapshotFolder.open(Storage.at(other))
        self.promote(self.register("tones", url=other, manifest=made.manifest), by="another", why="")
        return register(self, *words, **more)

    monkeypatch.setattr(Registry, "register", meanwhile)
    with pytest.raises(ValueError, match="changed meanwhile: run again"):
        gate.run(good)
    assert gate.run(good) == ["gate"]
    assert gate.report(good)["before"] == 2


def test_losses_on_other_latents_are_not_compared(gate: Gate, tmp_path: Path) -> None:
    poor = snapshot(tmp_path / "poor", 0.15, statistics={"mean": [0.0] * 3, "std": [1.2] * 3})
    good = snapshot(tmp_path / "good", 0.0)
    gate.run(poor)
    gate.run(good)
    said = gate.report(good)
    assert said["promoted"] is True
    assert said["figures"]["loss"] is None


def test_mistakes_are_told_in_one_line(gate: Gate, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name of a registered model"):
        gate.recipe("/x", model="models:/tones")
    autoencoder = snapshot(tmp_path / "autoencoder", 0.0, task="autoencoder")
    with pytest.raises(ValueError, match="name a train stage"):
        gate.run(autoencoder)


def test_an_mlflow_that_is_away_is_told_before_anything_is_planned(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = snapshot(tmp_path / "good", 0.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match=r"^MLflow at http://127.0.0.1:9 ") as raised:
        gate.run(good)
    assert "\n" not in str(raised.value)
    assert SimpleNamespace(**vars(raised.value)).error_code
