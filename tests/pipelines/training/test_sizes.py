"""Training on images of several sizes: a batch has one, and killed and resumed it is the unbroken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from diffusion.config import UNetConfig
from pipelines.arrays import pixels
from pipelines.models import Generator, SnapshotFolder
from pipelines.stages.generate import Generate
from pipelines.stages.train_autoencoder import TrainAutoencoder
from pipelines.training import loop, trainer
from pipelines.training.tasks.autoencoder import AutoencoderTask
from pipelines.training.tasks.decoded import Grouped
from pipelines.training.tasks.denoiser import DenoiserTask
from tests import fresh
from tests.pipelines import several, tiny
from tests.pipelines.stages.making import column, made
from tests.pipelines.training import test_trainer

NETWORKS = {"dit": tiny.NETWORK, "unet": UNetConfig(channels=8, multipliers=(1, 2), blocks=1, stem=1)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    return several.line(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def unbroken(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, SnapshotFolder]:
    folder = tmp_path_factory.mktemp("unbroken")
    return {
        name: tiny.run(tiny.train(network=network), tiny.session(folder / name, inputs))
        for name, network in NETWORKS.items()
    }


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", list(NETWORKS))
def test_stopped_and_resumed_is_the_unbroken_one(
    inputs: dict[str, Any],
    unbroken: dict[str, SnapshotFolder],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, step = tiny.train(network=NETWORKS[name], checkpoint_every=16), loop.Loop.step

    def stopping(self: loop.Loop, progress: Any) -> None:
        step(self, progress)
        if progress.images_seen == 56:
            self._writer.wait()
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "step", stopping)
        with pytest.raises(Stop):
            tiny.run(stage, tiny.session(tmp_path, inputs))
    session = tiny.session(tmp_path, inputs, lease=2)
    resumed = tiny.run(stage, session)

    assert [e["text"] for e in session.events if e["kind"] == "note"] == ["Continues from 48 images."]
    assert resumed.record["files"] == unbroken[name].record["files"]
    assert resumed.record["curve"] == unbroken[name].record["curve"]


def test_batches_have_one_size_and_all_sizes_come(inputs: dict[str, Any]) -> None:
    task = DenoiserTask(
        tiny.train(tokens=0.5, images_seen=800, validation_samples=6), inputs, device=CPU, workers=1
    )
    stage = task.stage
    stream = trainer.TrainingStream(task.length, stage.seed, stage.batch, groups=task.groups)
    seen: dict[tuple[int, ...], int] = {}
    for _, (positions, indices) in zip(range(24), stream, strict=False):
        share = task.share(positions, indices)
        shape = tuple(share.latents.shape[1:])
        assert share.noise.shape == share.latents.shape
        (size,) = {several.size(n) for n in indices.tolist()}
        assert shape == (2, size[1] // 4, size[0] // 4)
        # Half of this size's tokens take the middle blocks.
        assert share.conditioning.route is not None
        assert share.conditioning.route.shape[1] == round(shape[1] * shape[2] / 4 / 2)
        seen[size] = seen.get(size, 0) + 1
    assert seen == dict(zip(several.SIZES, several.COUNTS, strict=True))
    assert sorted(share.latents.shape[-1] for share in task.held_out) == [2, 4, 6]
    assert sum(len(share.t) for share in task.held_out) == stage.validation_samples


def test_it_learns_and_draws_each_size(inputs: dict[str, Any], tmp_path: Path) -> None:
    latents = several.latents(tmp_path / "latents", inputs["autoencoder"])
    stage = tiny.train(images_seen=480, validate_every=40, text=None)
    snapshot = tiny.run(stage, tiny.session(tmp_path, {**inputs, "latents": latents, "text": None}))
    curve = [values["validation_loss"] for _, values in snapshot.record["curve"]]
    assert curve[-1] < 0.8 * curve[0]
    sizes = [[*size, n] for size, n in zip(several.SIZES, several.COUNTS, strict=True)]
    assert snapshot.record["sizes"] == sizes
    assert snapshot.record["latent_shape"] == [2, 4, 4]

    model = Generator(snapshot, device="cpu")
    assert model.model.tile >= 6
    for size in several.SIZES:
        images = model.generate(count=2, size=size, micro_batch=2)
        assert [image.size for image in images] == [size, size]
    # Of no size in particular it draws the one that most have.
    assert model.generate(count=1)[0].size == (16, 16)
    with pytest.raises(ValueError, match="not trained on images of 32x32: it draws 8x24, 16x16, 24x8"):
        model.generate(count=1, size=(32, 32))

    drawn = Generate(model="base", count=3, size=(24, 8), micro_batch=4, guidance=stage.guidance)
    given = {"model": snapshot, "upscalers": (), "images": None, "captions": None}
    found = column(made(drawn, given, tmp_path / "drawn"), "image")
    assert {pixels(data).shape for data in found.values()} == {(8, 24, 3)}


def test_a_model_of_one_size_draws_that_one(tmp_path: Path) -> None:
    inputs = {**tiny.line(tmp_path / "line"), "text": None}
    snapshot = tiny.run(tiny.train(images_seen=8, text=None), tiny.session(tmp_path, inputs))
    assert "sizes" not in snapshot.record
    model = Generator(snapshot, device="cpu")
    assert model.generate(count=1, size=(16, 16))[0].size == (16, 16)
    with pytest.raises(ValueError, match="16 px squares alone"):
        model.generate(count=1, size=(24, 8))


def test_an_autoencoder_sees_all_sizes(inputs: dict[str, Any], tmp_path: Path) -> None:
    stage = TrainAutoencoder(
        images="images",
        autoencoder=tiny.AUTOENCODER,
        images_seen=320,
        batch=8,
        optimization=tiny.OPTIMIZATION,
        validate_every=80,
        checkpoint_seconds=None,
    )
    snapshot = tiny.run(stage, tiny.session(tmp_path, {"images": inputs["images"]}))
    curve = [values["validation_l1"] for _, values in snapshot.record["curve"]]
    assert curve[-1] < 0.8 * curve[0]
    assert snapshot.record["resolution"] == 16

    task = AutoencoderTask(stage, inputs["images"], device=CPU, workers=1)
    assert [len(group) for group in task.groups] == several.COUNTS
    share = task.share(np.arange(3), task.groups[2][:3])
    assert (share.images.shape, share.noise.shape) == ((3, 3, 8, 24), (3, 2, 2, 6))
    # Averages over images, whatever batches of one size they come in.
    by_size = [[image for image in task.held_out if image.shape[1::-1] == size] for size in several.SIZES]
    assert sorted(map(len, by_size)) == [1, 1, 4]


def test_what_does_not_go_with_several_sizes_is_said(inputs: dict[str, Any], tmp_path: Path) -> None:
    coarse = tiny.train(network=tiny.DiTConfig(width=16, depth=2, heads=2, patch=4))
    with pytest.raises(ValueError, match=r"`buckets.step` to a multiple of 16"):
        coarse.run(tiny.session(tmp_path, inputs))
    upscaler = tiny.train_upscaler()
    given = {**inputs, "text": None, "originals": inputs["images"]}
    with pytest.raises(ValueError, match="an upscaler trains on one"):
        upscaler.run(tiny.session(tmp_path, given))


def test_rows_of_two_sizes_are_no_batch() -> None:
    groups = [np.array([0, 3]), np.array([1, 2, 4])]
    grouped = Grouped(lambda n: np.full(2 + n % 3 // 2, n), groups, dtype=np.float16, budget=10**6)
    with pytest.raises(ValueError, match="2 sizes"):
        grouped[[0, 1]]
    assert grouped[[3, 0, 3]][:, 0].tolist() == [3, 0, 3]


def aftermath(folder: str) -> None:
    """In a fresh process, because autograd may not be forked once it has been used."""
    torch.set_num_threads(1)
    test_trainer.import_all()
    line, stage = several.line(Path(folder) / "line"), tiny.train(checkpoint_every=16)
    test_trainer.gang(3, Path(folder) / "three", line, stage)
    test_trainer.gang(3, Path(folder) / "broken", line, stage, dies_at=48)
    test_trainer.gang(3, Path(folder) / "broken", line, stage)


@pytest.fixture(scope="module")
def remains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remains")
    fresh.run(aftermath, str(folder), timeout=280)
    return folder


@pytest.mark.slow
def test_three_workers_take_equal_steps_and_learn_the_same(
    unbroken: dict[str, SnapshotFolder], remains: Path
) -> None:
    """Three do not divide the batch of 8. One that waited for a step that another did not take would hang."""
    one = load(unbroken["dit"].read("denoiser.safetensors"))
    three, broken = (
        (remains / n / "output" / "denoiser.safetensors").read_bytes() for n in ("three", "broken")
    )
    assert three == broken
    for key, tensor in load(three).items():
        torch.testing.assert_close(tensor.float(), one[key].float(), rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_one_size_alone_is_trained_as_ever(tmp_path: Path) -> None:
    """Bucketed images that all fell into one bucket see what unbucketed ones see, to the bit."""
    line = tiny.line(tmp_path / "line")
    plain = tiny.run(tiny.train(), tiny.session(tmp_path / "plain", line))
    latents = line["latents"]
    latents.manifest["statistics"]["sizes"] = [[16, 16, tiny.TRAIN]]
    single = tiny.run(tiny.train(), tiny.session(tmp_path / "single", line))
    assert single.record["sizes"] == [[16, 16, tiny.TRAIN]]
    assert single.record["files"] == plain.record["files"]
