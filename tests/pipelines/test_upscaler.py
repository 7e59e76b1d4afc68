"""Upscalers from training to use: what they learn, and that an image depends on nothing but itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.config import DiTConfig, HeunConfig, LowResolutionConfig
from pipelines.models import Generator, SnapshotFolder
from pipelines.upscaler import Upscaler
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    return tiny.pixels_line(tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="module")
def trained(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> SnapshotFolder:
    folder = tmp_path_factory.mktemp("upscaler")
    return tiny.run(tiny.train_upscaler(images_seen=160), tiny.session(folder, inputs))


@pytest.fixture(scope="module")
def upscaler(trained: SnapshotFolder) -> Upscaler:
    return Upscaler(trained, device="cpu")


def small(n: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.fromarray(tiny.picture(n)).resize(size, Image.Resampling.BICUBIC)


def psnr(image: Image.Image, n: int) -> float:
    error = np.asarray(image).astype(float) - tiny.picture(n)
    return 10 * np.log10(255**2 / np.square(error).mean())


def test_regression_comes_nearer_than_bicubic(inputs: dict[str, Any], tmp_path: Path) -> None:
    """On held-out images, whose squares are where those of training images are not."""
    stage = tiny.train_upscaler(objective="regression", images_seen=800)
    model = Upscaler(tiny.run(stage, tiny.session(tmp_path, inputs)), device="cpu")
    held_out = range(tiny.TRAIN, tiny.TRAIN + tiny.HELD_OUT)
    ours = [
        psnr(image, n) for n, image in zip(held_out, model.enlarge([small(n) for n in held_out]), strict=True)
    ]
    bicubic = [psnr(small(n).resize((16, 16), Image.Resampling.BICUBIC), n) for n in held_out]
    assert np.mean(ours) > np.mean(bicubic) + 1


def test_an_image_depends_on_itself_alone(upscaler: Upscaler) -> None:
    together = upscaler.enlarge([small(1), small(2, (9, 12)), small(3)], indices=[5, 6, 7], micro_batch=2)
    alone = upscaler.enlarge([small(3)], indices=[7], micro_batch=2)
    assert np.array_equal(np.asarray(together[2]), np.asarray(alone[0]))
    assert [image.size for image in together] == [(16, 16), (18, 24), (16, 16)]
    other = upscaler.enlarge([small(3)], indices=[8], micro_batch=2)
    assert not np.array_equal(np.asarray(other[0]), np.asarray(alone[0]))


def test_a_level_is_heeded_up_to_what_was_learned(upscaler: Upscaler) -> None:
    plain, noised = (upscaler.enlarge([small(1)], level=level)[0] for level in (0.0, 0.5))
    assert not np.array_equal(np.asarray(plain), np.asarray(noised))
    with pytest.raises(ValueError, match=r"level is 0\.6; this upscaler learned levels from 0 to 0\.5"):
        upscaler.enlarge([small(1)], level=0.6)


def test_the_record_says_what_it_takes(trained: SnapshotFolder) -> None:
    told = trained.record["upscaling"]
    assert (told["factor"], told["noise"], told["size"]) == (2, 0.5, tiny.SIZE)
    assert len(told["scale"]) == 3
    assert all(0 < scale < 1 for scale in told["scale"])
    with pytest.raises(ValueError, match="is an upscaler"):
        Generator(trained)


def test_one_that_draws_is_no_upscaler(tmp_path: Path) -> None:
    model = tiny.run(
        tiny.train(images_seen=16, text=None, images=None),
        tiny.session(tmp_path, {**tiny.line(tmp_path), "text": None, "images": None}),
    )
    with pytest.raises(ValueError, match="is no upscaler"):
        Upscaler(model)


def test_resumed_training_is_the_unbroken_one(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Crops, levels and noise of the small images are functions of the position too."""
    fields: dict[str, Any] = {"low_resolution": LowResolutionConfig(crop=8), "checkpoint_every": 16}
    whole = tiny.run(tiny.train_upscaler(images_seen=64, **fields), tiny.session(tmp_path / "a", inputs))
    for length in (32, 64):
        session = tiny.session(tmp_path / "b", inputs, output=f"to {length}")
        resumed = tiny.run(tiny.train_upscaler(images_seen=length, **fields), session)
    assert resumed.record["files"] == whole.record["files"]


def test_a_transformer_enlarges_in_tiles(inputs: dict[str, Any], tmp_path: Path) -> None:
    stage = tiny.train_upscaler(
        network=DiTConfig(width=16, depth=1, heads=2, patch=2),
        low_resolution=LowResolutionConfig(crop=8),
        images_seen=32,
    )
    model = Upscaler(tiny.run(stage, tiny.session(tmp_path, inputs)), device="cpu")
    assert model.enlarge([small(1, (9, 7))], sampler=HeunConfig(steps=1))[0].size == (18, 14)
    with pytest.raises(ValueError, match=r"takes images of 4 px and more a side, and one has 3 x 9"):
        model.enlarge([small(1, (3, 9))])


def test_latents_of_an_autoencoder_go_as_well(tmp_path: Path) -> None:
    line = tiny.line(tmp_path)
    inputs = {**line, "text": None, "images": None, "originals": line["images"]}
    stage = tiny.train_upscaler(network=tiny.NETWORK, images_seen=32)
    model = Upscaler(tiny.run(stage, tiny.session(tmp_path, inputs)), device="cpu")
    assert model.enlarge([small(1)], sampler=HeunConfig(steps=1))[0].size == (16, 16)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"originals": None}, "needs both"),
        ({"low_resolution": None}, "needs both"),
        ({"low_resolution": None, "originals": None, "objective": "regression"}, "trains upscalers only"),
    ],
)
def test_what_does_not_go_together_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny.train_upscaler(**changes)


def test_a_crop_must_fit(inputs: dict[str, Any], tmp_path: Path) -> None:
    stage = tiny.train_upscaler(low_resolution=LowResolutionConfig(crop=32))
    with pytest.raises(ValueError, match="a crop of 32 px"):
        tiny.run(stage, tiny.session(tmp_path, inputs))
