"""A denoiser's training that begins with the weights of one at a smaller resolution."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.storage import Storage
from diffusion.config import DiTConfig, OptimizationConfig, UNetConfig
from pipelines.arrays import to_npy
from pipelines.dataset import write_manifest
from pipelines.models import SnapshotFolder, latent_model
from pipelines.stages.train import Train
from pipelines.training import loop
from tests.pipelines import tiny

CPU = torch.device("cpu")
NETWORK = DiTConfig(width=32, depth=2, heads=2, patch=2)
SIDES = {None: 16, 32: 8}
"""Of latents, by the resolution that a stage names."""


def moments(n: int, side: int) -> bytes:
    """A blob whose place in the frame depends on `n`, seen at any resolution, in front of a corner that is
    always bright: where in the frame a token is says what to expect."""
    along = (np.arange(side) + 0.5) / side
    x, y = 0.2 + 0.6 * (n % 5) / 4, 0.2 + 0.6 * (n % 7) / 6
    blob = np.exp(-(((along[None] - x) ** 2 + (along[:, None] - y) ** 2) / 0.02))
    corner = np.exp(-((along[None] ** 2 + along[:, None] ** 2) / 0.08))
    mean = np.stack([blob, corner]).astype(np.float16)
    return to_npy(np.concatenate([mean, np.full_like(mean, 0.01)]))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line")
    line = tiny.line(folder)
    del line["text"]

    def members(key: str, n: int) -> dict[str, bytes]:
        return {"moments.npy": moments(n, 16), "at32.moments.npy": moments(n, 8)}

    latents = {"mean": [0.1, 0.1], "std": [0.22, 0.2]}
    told = {side: {"latents": latents, "shape": [2, side, side], "resolution": 4 * side} for side in (8, 16)}
    statistics = {**told[16], "resolutions": {"32": told[8]}, "autoencoder": line["autoencoder"].digest()}
    line["latents"] = tiny.dataset(folder / "two", members, statistics=statistics)
    return line


def train(**changes: Any) -> Train:
    optimization = OptimizationConfig(lr=3e-3, warmup=64, cooldown=0)
    fields = {"network": NETWORK, "optimization": optimization, "text": None, "samples_every": 10**6}
    return tiny.train(**{**fields, "validation_samples": 6, **changes})


@pytest.fixture(scope="module")
def small(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> SnapshotFolder:
    """Trained on 4 x 4 tokens."""
    stage = train(resolution=32, images_seen=800, batch=16, validate_every=800, tokens=0.5)
    return tiny.run(stage, tiny.session(tmp_path_factory.mktemp("small"), inputs))


def loss(stage: Train, inputs: dict[str, Any]) -> float:
    """Held-out, before the first step."""
    task = stage.task(inputs, CPU, 1)
    return task.evaluate(task.module)["validation_loss"]


def test_it_begins_near_the_old_loss_and_far_from_a_fresh_one(
    inputs: dict[str, Any], small: SnapshotFolder
) -> None:
    ((_, curve),) = small.record["curve"]
    old, given = curve["validation_loss"], {**inputs, "initial": small}

    fresh = loss(train(), inputs)
    begun = loss(train(initial="small"), given)
    # What a network does that takes the larger grid for more of the world, not for a finer view of it.
    astray = loss(train(initial="small", network=dataclasses.replace(NETWORK, frame=8)), given)

    assert loss(train(initial="small", resolution=32), given) == pytest.approx(old, rel=0.02)  # fp16 weights
    assert begun < 0.5 * fresh
    assert begun < 1.3 * old
    assert begun < astray


def test_the_frame_is_handed_on_from_stage_to_stage(
    inputs: dict[str, Any], small: SnapshotFolder, tmp_path: Path
) -> None:
    given, stage = {**inputs, "initial": small}, train(initial="small", images_seen=16)
    second = tiny.run(stage, tiny.session(tmp_path / "second", given))
    third = tiny.run(stage, tiny.session(tmp_path / "third", {**inputs, "initial": second}))

    assert "frame" not in small.record["network"]
    for snapshot in (second, third):
        assert snapshot.record["network"]["frame"] == 4
        assert snapshot.record["latent_shape"] == [2, 16, 16]
        assert latent_model(snapshot).denoiser.network.trained == (4, 4)  # pyright: ignore
    assert second.record["files"] != third.record["files"]


class Stop(Exception):
    pass


def test_stopped_and_resumed_is_the_unbroken_one(
    inputs: dict[str, Any], small: SnapshotFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it began with is not loaded over what it has learned."""
    given, step = {**inputs, "initial": small}, loop.Loop.step
    stage = train(initial="small", images_seen=64, checkpoint_every=16)
    unbroken = tiny.run(stage, tiny.session(tmp_path / "unbroken", given))

    def stopping(self: loop.Loop, progress: Any) -> None:
        step(self, progress)
        if progress.images_seen == 40:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "step", stopping)
        with pytest.raises(Stop):
            tiny.run(stage, tiny.session(tmp_path, given))
    resumed = tiny.run(stage, tiny.session(tmp_path, given, lease=2))
    assert resumed.record["files"] == unbroken.record["files"]


def unlike(small: SnapshotFolder, folder: Path, **changes: Any) -> SnapshotFolder:
    """The same weights with a record that says something else."""
    shutil.copytree(small.local(), folder)
    (folder / "manifest.json").unlink()
    write_manifest(Storage.at(folder), {"snapshot": {**small.record, **changes}}, kind="snapshot")
    return SnapshotFolder.open(Storage.at(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": UNetConfig()}, "of kind dit and this one is unet"),
        (
            {"network": dataclasses.replace(NETWORK, width=48, depth=3)},
            r"width 32 \(here 48\), depth 2 \(here 3\): `network` must be the same",
        ),
        ({"text": "embed"}, "trained with no text states, and this training has text states of width 8"),
        ({"images": None}, r"knows 3 classes \(circle, square, cross\), and `images` has no classes"),
    ],
    ids=["kind", "width", "text", "classes"],
)
def test_another_network_is_refused(
    inputs: dict[str, Any], small: SnapshotFolder, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stage, given = train(initial="small", **changes), {**inputs, "text": tiny.text(tmp_path)}
    given = {name: opened for name, opened in given.items() if getattr(stage, name)}
    with pytest.raises(ValueError, match=message):
        stage.task({**given, "initial": small}, CPU, 1)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"task": "autoencoder"}, "holds no denoiser"),
        ({"latent_shape": [4, 8, 8]}, "latents of 4 channels, and these have 2"),
        ({"classes": ["square", "circle", "cross"]}, r"knows 3 classes \(square, circle, cross\)"),
        ({"text": {"width": 8, "pooled_width": 8}}, "trained with text states of width 8, .* no text states"),
        ({"upscaling": {"size": 8}}, "is an upscaler, and this training makes none"),
    ],
    ids=["task", "channels", "classes", "text", "upscaler"],
)
def test_what_another_network_was_trained_on_is_refused(
    inputs: dict[str, Any], small: SnapshotFolder, said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = {**inputs, "initial": unlike(small, tmp_path / "unlike", **said)}
    with pytest.raises(ValueError, match=message):
        train(initial="small").task(given, CPU, 1)
