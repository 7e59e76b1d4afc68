"""A real training against a discriminator, on the emoji that ship."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pipelines
from cluster.storage import Storage
from diffusion.config import KLAutoencoderConfig, OptimizationConfig
from diffusion.config.adversarial import DiscriminatorConfig
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.shards import write_shard
from pipelines.stage import Row, Sample
from pipelines.stages.train_autoencoder import TrainAutoencoder
from pipelines.training import loop
from tests.pipelines import tiny

SIDE, TRAIN, HELD_OUT = 24, 320, 64


def emoji(folder: Path) -> Dataset:
    storage, shards = Storage.at(folder), []
    with zipfile.ZipFile(Path(pipelines.__file__).parent / "data" / "emoji3d.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
        chosen = names[:: len(names) // (TRAIN + HELD_OUT)][: TRAIN + HELD_OUT]
        files = {}
        for n, name in enumerate(chosen):
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGBA").resize((SIDE, SIDE))
            ground = Image.new("RGBA", image.size, "white")
            buffer = io.BytesIO()
            Image.alpha_composite(ground, image).convert("RGB").save(buffer, "PNG")
            files[f"k{n:03d}"] = buffer.getvalue()
    keys = list(files)
    # every sixth is held out: neighbours in the list are alike
    held_out = keys[::6][:HELD_OUT]
    for name, split, of in (
        ("00000", "train", [key for key in keys if key not in held_out]),
        ("00001", "validation", held_out),
    ):
        rows = [(Row(key=key), Sample(key=key, members={"png": files[key]})) for key in of]
        shards.append(write_shard(storage, name, rows, split=split))
    write_manifest(storage, describe(shards, stage="test"))
    return Dataset.open(storage)


@pytest.mark.slow
def test_held_out_emoji_come_back_and_the_discriminator_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    stage = TrainAutoencoder(
        images="images",
        autoencoder=KLAutoencoderConfig(latent_channels=4, channels=24, multipliers=(1, 2), stem=2),
        images_seen=4_000,
        batch=16,
        optimization=OptimizationConfig(lr=3e-3, warmup=160, cooldown=800, ema=0.05),
        discriminator=DiscriminatorConfig(start=1_600, channels=16, layers=2, weight=0.1, rate=0.25),
        checkpoint_seconds=None,
    )
    session = tiny.session(tmp_path, {"images": emoji(tmp_path / "images")})
    snapshot = tiny.run(stage, session)

    curve: dict[int, Any] = {point[0]: point[1] for point in snapshot.record["curve"]}
    assert curve[4_000]["validation_psnr"] > 20.0
    assert curve[4_000]["validation_psnr"] > curve[400]["validation_psnr"] + 3
    assert curve[4_000]["validation_ssim"] > curve[400]["validation_ssim"] + 0.1
    losses = [e["values"]["discriminator"] for e in session.events if "discriminator" in e.get("values", {})]
    assert len(losses) == 150
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert sum(losses[-20:]) / 20 < 0.5
    weights = [
        e["values"]["adversarial_weight"]
        for e in session.events
        if "adversarial_weight" in e.get("values", {})
    ]
    assert 0 < min(weights) <= max(weights) < 100
