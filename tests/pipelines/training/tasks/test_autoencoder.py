"""An autoencoder against a discriminator, through the one training loop."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from diffusion.config import OptimizationConfig
from diffusion.config.adversarial import DiscriminatorConfig
from pipelines.dataset import Dataset
from pipelines.models import SnapshotFolder
from pipelines.stages.train_autoencoder import TrainAutoencoder
from pipelines.training import loop
from pipelines.training.tasks.autoencoder import AutoencoderTask, encoding
from tests import fresh
from tests.pipelines import tiny

FILE = "autoencoder.safetensors"
AGAINST = DiscriminatorConfig(start=32, channels=8, layers=1, rate=0.5)
COOLED = OptimizationConfig(lr=3e-3, warmup=16, cooldown=16)


def stage(**fields: Any) -> TrainAutoencoder:
    settings: dict[str, Any] = {
        "images": "images",
        "autoencoder": tiny.AUTOENCODER,
        "images_seen": 80,
        "batch": 8,
        "optimization": COOLED,
        "discriminator": AGAINST,
        "validation_samples": 4,
        "validate_every": 40,
        "samples_every": 80,
        "checkpoint_seconds": None,
        "checkpoint_every": 8,
    }
    return TrainAutoencoder(**{**settings, **fields})


def task(images: Dataset, **fields: Any) -> AutoencoderTask:
    torch.manual_seed(0)
    return AutoencoderTask(stage(**fields), images, device=torch.device("cpu"), workers=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return tiny.images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def unbroken(images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[SnapshotFolder, list[Any]]:
    """80 images, of which the last 48 against the discriminator, and the events."""
    session = tiny.session(tmp_path_factory.mktemp("unbroken"), {"images": images})
    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "REPORT_SECONDS", 0.0)
    snapshot = tiny.run(stage(), session)
    patch.undo()
    return snapshot, session.events


def close(a: bytes, b: bytes) -> None:
    one, other = load(a), load(b)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name].float(), tensor.float(), rtol=2e-2, atol=2e-3, msg=name)


def aftermath(folder: str) -> None:
    """What forks, in a fresh process: a killed training, and one on two workers."""
    from tests.pipelines.training.test_trainer import gang

    torch.set_num_threads(1)
    for name in (
        "torch.nn.parallel",
        "safetensors.torch",
        "pipelines.training.tasks.autoencoder",
        "PIL.Image",
    ):
        importlib.import_module(name)
    COOLED.build(tiny.AUTOENCODER.build())[0].zero_grad()
    top = Path(folder)
    line = {"images": tiny.images(top / "images")}
    gang(2, top / "two", line, stage())
    gang(1, top / "killed", line, stage(), dies_at=24)
    gang(2, top / "broken", line, stage(), dies_at=24)
    gang(2, top / "broken", line, stage())


@pytest.fixture(scope="module")
def remains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remains")
    fresh.run(aftermath, str(folder), timeout=280)
    return folder


def resumed(images: Dataset, unbroken: tuple[SnapshotFolder, list[Any]], folder: Path, reached: int) -> None:
    session = tiny.session(folder, {"images": images}, output="again", lease=2)
    snapshot = tiny.run(stage(), session)
    notes = [event["text"] for event in session.events if event["kind"] == "note"]
    assert notes == [f"Continues from {reached} images."]
    assert snapshot.record["files"] == unbroken[0].record["files"]
    assert snapshot.record["curve"] == unbroken[0].record["curve"]


@pytest.mark.parametrize("reached", [24, 48])
def test_broken_off_on_either_side_of_its_start_it_ends_in_the_same_bits(
    images: Dataset,
    unbroken: tuple[SnapshotFolder, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reached: int,
) -> None:
    step = loop.Loop.step

    def dying(self: loop.Loop, progress: Any) -> None:
        step(self, progress)
        if progress.images_seen == reached:
            self._writer.wait()
            raise InterruptedError

    monkeypatch.setattr(loop.Loop, "step", dying)
    with pytest.raises(InterruptedError):
        stage().run(tiny.session(tmp_path, {"images": images}))
    monkeypatch.setattr(loop.Loop, "step", step)
    resumed(images, unbroken, tmp_path, reached)


@pytest.mark.slow
def test_killed_before_its_start_it_ends_in_the_same_bits(
    images: Dataset, unbroken: tuple[SnapshotFolder, list[Any]], remains: Path
) -> None:
    resumed(images, unbroken, remains / "killed", 24)


@pytest.mark.slow
def test_two_workers_learn_what_one_does(unbroken: tuple[SnapshotFolder, list[Any]], remains: Path) -> None:
    two, broken = ((remains / name / "output" / FILE).read_bytes() for name in ("two", "broken"))
    close(unbroken[0].read(FILE), two)
    assert two == broken


def test_the_discriminator_learns_from_its_start_and_stays_behind(
    images: Dataset, unbroken: tuple[SnapshotFolder, list[Any]], tmp_path: Path
) -> None:
    snapshot, events = unbroken
    steps = [(e["step"], e["values"]) for e in events if e["kind"] == "metrics" and "loss" in e["values"]]
    judged = {step: values["discriminator"] for step, values in steps if "discriminator" in values}
    assert sorted(judged) == [40, 48, 56, 64, 72, 80]
    assert judged[40] == pytest.approx(1, abs=0.2)  # hinge, of logits about 0
    assert judged[80] < judged[40] - 0.05
    # the autoencoder's averages and weights alone are what is kept of it
    assert {name.partition(".")[0] for name in load(snapshot.read(FILE))} == {"encoder", "decoder"}
    assert snapshot.record["loss"] == {"pixels": "l1", "networks": []}
    assert {"validation_ssim", "validation_psnr"} <= snapshot.record["curve"][-1][1].keys()
    # until its start, it is the training without one, and from then on another
    plain = tiny.run(stage(discriminator=None), tiny.session(tmp_path / "plain", {"images": images}))
    late = stage(discriminator=DiscriminatorConfig(start=80, channels=8, layers=1))
    never = tiny.run(late, tiny.session(tmp_path / "late", {"images": images}))
    assert never.record["files"] == plain.record["files"]
    assert snapshot.record["files"] != plain.record["files"]


def test_in_pieces_and_in_bfloat16_it_learns_too(
    images: Dataset, unbroken: tuple[SnapshotFolder, list[Any]], tmp_path: Path
) -> None:
    """Each piece has a weight of its own, so that pieces learn nearly the same."""
    fixed = DiscriminatorConfig(start=32, channels=8, layers=1, rate=0.5, adaptive=False, weight=0.01)
    whole, pieces = (
        tiny.run(
            stage(discriminator=fixed, accumulate=count),
            tiny.session(tmp_path / str(count), {"images": images}),
        )
        for count in (1, 3)
    )
    close(whole.read(FILE), pieces.read(FILE))
    half = tiny.run(stage(precision="bfloat16"), tiny.session(tmp_path / "half", {"images": images}))
    ours, theirs = (one.record["curve"][-1][1]["validation_psnr"] for one in (half, unbroken[0]))
    assert ours == pytest.approx(theirs, abs=1.0)
    assert half.record["skipped"] == 0


@pytest.mark.slow
def test_compiled_blocks_take_both_backwards(images: Dataset) -> None:
    """The graph behind the last layer is gone through twice, that of compiled blocks once."""
    from diffusion.compilation import compile_blocks

    torch._dynamo.reset()
    plain, compiled = task(images), task(images)
    assert compile_blocks(compiled.module, backend="aot_eager") == 3  # the discriminator has none
    share = plain.share(np.arange(32, 40), np.arange(8))
    assert share.judged
    for one in (plain, compiled):
        one.losses(one.module, share).sum().backward()
    for (name, p), q in zip(plain.module.named_parameters(), compiled.module.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)
    torch._dynamo.reset()


def test_squared_errors_are_the_mean_of_squares(images: Dataset) -> None:
    plain = task(images, discriminator=None, kl_weight=0.0, perceptual_weight=0.0)
    share = plain.share(np.arange(4), np.arange(4))
    batch = share.images / 127.5 - 1
    made = plain.module(batch, share.noise)[0]
    squared = task(images, discriminator=None, kl_weight=0.0, perceptual_weight=0.0, pixels="l2")
    torch.testing.assert_close(
        squared.losses(plain.module, share), (made - batch).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-6
    )


def test_it_begins_with_anothers_weights(images: Dataset, tmp_path: Path) -> None:
    initial = tiny.autoencoder(tmp_path / "vae")
    given = {"images": images, "initial": initial}
    kind = type(tiny.AUTOENCODER)()  # its shape is the initial one's
    started = stage(initial="vae", autoencoder=kind, discriminator=None)
    begun: Any = started.task(given, torch.device("cpu"), 1)
    for name, weight in begun.module.autoencoder.state_dict().items():
        assert weight.equal(initial.tensors(FILE)[name])
    snapshot = tiny.run(started, tiny.session(tmp_path, given))
    assert snapshot.record["autoencoder"] == initial.record["autoencoder"]
    assert "encodes_as" not in snapshot.record
    assert snapshot.autoencoder().factor == tiny.AUTOENCODER.factor


def test_of_the_decoder_alone_the_latents_stay(images: Dataset, tmp_path: Path) -> None:
    initial = tiny.autoencoder(tmp_path / "vae")
    given = {"images": images, "initial": initial}
    alone = stage(initial="vae", train="decoder", optimization=OptimizationConfig(weight_decay=0.1, warmup=0))
    snapshot = tiny.run(alone, tiny.session(tmp_path, given))
    before, after = load(initial.read(FILE)), load(snapshot.read(FILE))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert snapshot.record["encodes_as"] == initial.digest()
    batch = torch.from_numpy(np.stack([tiny.picture(n) for n in range(4)])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        assert snapshot.autoencoder().encode(batch).mean.equal(initial.autoencoder().encode(batch).mean)
    # so a denoiser of those latents can be given the better decoder
    latents = tiny.latents(tmp_path / "latents", initial)
    line = {"latents": latents, "autoencoder": snapshot, "text": None, "images": None}
    bare = tiny.train(text=None, images=None, images_seen=8)
    drawn = tiny.run(bare, tiny.session(tmp_path / "denoiser", line))
    assert drawn.record["files"][FILE] == snapshot.record["files"][FILE]
    assert encoding(initial.autoencoder()) == {n for n in before if n.startswith("encoder.")}


def test_what_does_not_fit_together_is_said(images: Dataset, tmp_path: Path) -> None:
    from diffusion.config import IdentityAutoencoderConfig, KLAutoencoderConfig
    from diffusion.config.autoencoders import TinyAutoencoderConfig

    given = {"images": images, "initial": tiny.autoencoder(tmp_path / "vae")}
    for config, words in (
        (TinyAutoencoderConfig(), "of kind kl and `autoencoder` says tiny"),
        (KLAutoencoderConfig(channels=96), "describes another kl"),
    ):
        with pytest.raises(ValueError, match=words):
            stage(initial="vae", autoencoder=config).run(tiny.session(tmp_path, given))
    with pytest.raises(ValueError, match="name the autoencoder that has it"):
        stage(train="decoder")
    with pytest.raises(ValueError, match="no `initial`"):
        stage(autoencoder=IdentityAutoencoderConfig(), initial="vae")
    with pytest.raises(ValueError, match="16 x 16 px are too small for the discriminator"):
        task(images, discriminator=DiscriminatorConfig(start=10**6))
    with pytest.raises(ValueError, match="accumulate is 9"):
        stage(accumulate=9)


def test_what_came_later_leaves_fingerprints_as_they_were() -> None:
    plain = stage(discriminator=None)
    assert (
        not {"pixels", "perceptual", "discriminator", "initial", "train", "accumulate"}
        & plain.meaning().keys()
    )
    assert stage(perceptual_weight=0.0).external() == {}
    assert list(stage(perceptual_weight=0.1).external()) == ["hed"]
