from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.config import IdentityAutoencoderConfig
from pipelines.dataset import Dataset
from pipelines.models import SnapshotFolder
from pipelines.scoring.reconstructing import channels
from pipelines.stages.evaluate_autoencoder import EvaluateAutoencoder
from pipelines.stages.train_autoencoder import TrainAutoencoder
from tests.pipelines import tiny

HELD_OUT = [tiny.picture(n) for n in range(tiny.TRAIN, tiny.TRAIN + tiny.HELD_OUT)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return tiny.images(tmp_path_factory.mktemp("images"), classes=())


def trained(images: Dataset, folder: Path, **fields: Any) -> SnapshotFolder:
    settings: dict[str, Any] = {
        "images": "images",
        "autoencoder": tiny.AUTOENCODER,
        "images_seen": 16,
        "batch": 8,
        "optimization": tiny.OPTIMIZATION,
        "checkpoint_seconds": None,
    }
    stage = TrainAutoencoder(**{**settings, **fields})
    return tiny.run(stage, tiny.session(folder, {"images": images}))


def evaluated(
    images: Dataset, folder: Path, *models: SnapshotFolder, **fields: Any
) -> tuple[dict[str, Any], tiny.TinySession]:
    names = tuple(f"model{n}" for n in range(len(models)))
    settings = {"bootstrap": 100, "shown": 3, "micro_batch": 3, **fields}
    stage = EvaluateAutoencoder(images="images", models=names, **settings)
    session = tiny.session(folder, {"images": images, "models": models})
    return stage.run(session), session


def test_figures_are_those_found_by_hand(images: Dataset, tmp_path: Path) -> None:
    autoencoder = tiny.autoencoder(tmp_path / "vae")
    pixels = trained(images, tmp_path / "pixels", autoencoder=IdentityAutoencoderConfig())
    said, session = evaluated(images, tmp_path, autoencoder, pixels)
    scores = said["reconstruction"]
    assert {len(row) for row in said["table"]["rows"]} == {len(said["table"]["columns"])}
    ours, same = scores["rows"]
    assert (scores["split"], scores["n"]) == ("validation", tiny.HELD_OUT)

    truth = np.stack(HELD_OUT)
    batch = torch.from_numpy(truth).permute(0, 3, 1, 2).float() / 127.5 - 1
    network = autoencoder.autoencoder()
    with torch.no_grad():
        moments = network.encode(batch)
        made = network.decode(moments.mean).clamp(-1, 1).add(1).mul(127.5).round()
    errors = (made.permute(0, 2, 3, 1).double().numpy() - truth) ** 2
    assert ours["psnr"]["value"] == pytest.approx(
        (20 * np.log10(255) - 10 * np.log10(errors.mean((1, 2, 3)))).mean(), abs=0.02
    )
    spread = (
        moments.mean.double().var((0, 2, 3), correction=0) + moments.std.double().square().mean((0, 2, 3))
    ).sqrt()
    assert ours["latents"]["std"] == pytest.approx(spread.tolist(), rel=1e-4)

    # what gives back what it was given is perfect, and the distances to it are 0 to the digit
    assert (same["psnr"]["value"], same["ssim"]["value"], same["lpips"]["value"]) == (100, 1, 0)
    assert abs(same["kid"]["value"]) < 1e-12 < ours["kid"]["value"]
    assert same["psnr_over_first"]["value"] == pytest.approx(100 - ours["psnr"]["value"])
    assert same["latents"]["dead"] == []
    assert json.loads(session.output.read("metrics.json")) == scores
    values = next(e["values"] for e in session.events if e["kind"] == "metrics")
    assert values["psnr_model0"] == ours["psnr"]["value"]
    assert values["kid_floor"] == scores["floor"]["value"]
    picture = Image.open(tmp_path / "output" / "reconstructions.png")
    assert picture.height == 5 * 100 - 4  # original, and two rows a model


def test_a_network_that_was_in_the_loss_is_no_judge(images: Dataset, tmp_path: Path) -> None:
    plain = trained(images, tmp_path / "plain")
    edges = trained(images, tmp_path / "edges", perceptual_weight=0.1)
    rows = evaluated(images, tmp_path, plain, edges)[0]
    first, second = rows["reconstruction"]["rows"]
    assert ("lpips" in first, "kid" in first) == (True, True)
    assert ("lpips" in second, "kid" in second) == (False, True)
    assert second["in_its_loss"] == ["hed"]
    assert "LPIPS-HED cannot judge model1: the network was in its loss." in rows["table"]["says"]
    assert rows["table"]["rows"][1].count("in its loss") == 1


def test_older_snapshots_say_it_by_their_weight(images: Dataset, tmp_path: Path) -> None:
    from pipelines.stages.train_autoencoder import networks_in_loss

    old = tiny.autoencoder(tmp_path / "vae")
    assert networks_in_loss(old) == []
    old.manifest["meaning"] = {"perceptual_weight": 0.3}
    assert networks_in_loss(old) == ["hed"]


def test_the_answer_does_not_depend_on_how_images_are_dealt_out(images: Dataset, tmp_path: Path) -> None:
    model = tiny.autoencoder(tmp_path / "vae")
    first, _ = evaluated(images, tmp_path / "a", model, micro_batch=2)
    session = tiny.session(tmp_path / "b", {"images": images, "models": (model,)})
    backwards = tiny.TinySession.map
    session.map = lambda factory, items: backwards(session, factory, items[::-1])  # type: ignore[method-assign]
    stage = EvaluateAutoencoder(images="images", models=("model0",), bootstrap=100, shown=3, micro_batch=2)
    assert stage.run(session) == first


def test_channels_that_say_nothing_are_named() -> None:
    chance = np.random.default_rng(0)
    mean = np.stack([chance.normal(0, 2, (50, 64)), np.full((50, 64), 3.0), np.zeros((50, 64))], axis=1)
    std = np.stack([np.full((50, 64), 0.5), np.zeros((50, 64)), np.ones((50, 64))], axis=1)
    said = channels(np.stack([mean.mean(2), (mean**2).mean(2), (std**2).mean(2)], axis=1))
    assert said["std"] == pytest.approx([np.sqrt(4.25), 0, 1], rel=0.02)
    assert said["signal"] == pytest.approx([4 / 4.25, 0, 0], rel=0.02)
    assert said["dead"] == [1, 2]


def test_what_cannot_be_judged_is_said(images: Dataset, tmp_path: Path) -> None:
    model = tiny.autoencoder(tmp_path / "vae")
    with pytest.raises(ValueError, match="0 images in its test split"):
        evaluated(images, tmp_path, model, split="test")
    with pytest.raises(ValueError, match="at least one of `models`"):
        evaluated(images, tmp_path)
    del model.record["autoencoder"]
    with pytest.raises(ValueError, match="model0 holds no autoencoder"):
        evaluated(images, tmp_path, model)
