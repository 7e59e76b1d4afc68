from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.config import EulerConfig, GuidanceConfig
from pipelines import embedders
from pipelines.editing import Denoise, ImageToImage, Inpaint, part
from pipelines.stage import Sample
from pipelines.stages.edit import Edit
from tests.pipelines import tiny

SAMPLER = EulerConfig(steps=4)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line")
    model = tiny.run(tiny.train(images_seen=16), tiny.session(folder / "b", tiny.line(folder)))
    return {"images": tiny.images(folder / "named"), "model": model, "masks": None}


@pytest.fixture(autouse=True)
def _embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "load_text", lambda record: tiny.Embedder())


def edited(inputs: dict[str, Any], **fields: Any) -> dict[str, Sample]:
    masks = "masks" if inputs["masks"] else None
    stage = Edit(images="images", model="model", masks=masks, sampler=SAMPLER, **fields)
    call = stage.open(inputs)
    return {
        sample.key: sample
        for shard in stage.plan(inputs)
        for sample in call(shard, stage.rows(inputs, shard))
    }


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_inpainting_keeps_every_known_pixel_and_says_how(inputs: dict[str, Any]) -> None:
    made = edited(inputs, edit=Inpaint(mask="left"))
    assert len(made) == tiny.TRAIN + tiny.HELD_OUT
    hidden = part("left", tiny.SIZE, tiny.SIZE)
    for n in (0, 7, 25):
        sample = made[f"k{n:03d}"]
        new, given = pixels(sample.members["png"]), pixels(sample.members["given.png"])
        assert np.array_equal(new[~hidden], tiny.picture(n)[~hidden])
        assert np.array_equal(given[~hidden], tiny.picture(n)[~hidden])
        # What is to be filled in is not shown: the model sees the mean of the rest.
        assert np.ptp(given[hidden], axis=0).max() == 0
        assert not np.array_equal(new[hidden], given[hidden])
    said = json.loads(made["k003"].members["json"])
    assert said["text"] == "thing 3"
    assert said["edited"]["edit"] == {"kind": "inpaint", "mask": "left", "resamplings": 3}
    assert said["edited"]["snapshot"] == inputs["model"].digest()
    assert made["k004"].members["cls"] == b"1"


@pytest.mark.parametrize("name", ["center", "left", "right", "top", "bottom"])
def test_parts_are_halves_or_the_middle(name: Any) -> None:
    mask = part(name, 8, 12)
    assert mask.sum() == (8 * 12 // 4 if name == "center" else 8 * 12 // 2)
    assert mask[4, {"left": 0, "right": 11}.get(name, 6)] == (name not in ("top",))


@pytest.mark.parametrize(
    "edit", [Inpaint(mask="center"), ImageToImage(strength=0.6), Denoise(noise=0.2, add=True, sharp=True)]
)
def test_an_image_is_the_same_however_it_is_cut(inputs: dict[str, Any], edit: Any) -> None:
    whole = edited(inputs, edit=edit, micro_batch=4)
    stage = Edit(images="images", model="model", sampler=SAMPLER, edit=edit, micro_batch=4)
    shard = stage.plan(inputs)[0]
    for sample in stage.open(inputs)(shard, stage.rows(inputs, shard)[5:8]):
        assert sample.members["png"] == whole[sample.key].members["png"]
    other = edited(inputs, edit=edit, micro_batch=4, seed=1)
    assert other["k005"].members["png"] != whole["k005"].members["png"]


def test_strength_is_how_much_changes(inputs: dict[str, Any]) -> None:
    from pipelines.editing import Editor

    editor = Editor(inputs["model"])
    given = [Image.fromarray(tiny.picture(n)) for n in range(6)]

    def of(strength: float) -> list[np.ndarray]:
        return [e.image for e in editor.edit(given, ImageToImage(strength=strength), sampler=SAMPLER)]

    with torch.no_grad():
        clean = (
            torch.from_numpy(np.stack([tiny.picture(n) for n in range(6)])).permute(0, 3, 1, 2) / 127.5 - 1
        )
        through = editor.model.autoencoder.decode(editor.model.autoencoder.encode(clean).mean)
    levels = ((through.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(np.stack(of(0.0)) - levels).max() <= 1
    changes = [np.abs(np.stack(of(s)).astype(float) - levels).mean() for s in (0.2, 0.9)]
    assert 0 < changes[0] < changes[1]


def test_captions_and_classes_are_heeded(inputs: dict[str, Any]) -> None:
    own = edited(inputs, edit=Inpaint(mask="center"), guidance=GuidanceConfig(scale=1.0))
    told = edited(inputs, edit=Inpaint(mask="center"), guidance=GuidanceConfig(scale=1.0), prompt="a tower")
    assert any(own[key].members["png"] != told[key].members["png"] for key in own)


def test_masks_are_found_by_name_and_their_lack_is_counted(inputs: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = {f"k{n:03d}": rng.random((tiny.SIZE, tiny.SIZE)) < 0.3 for n in range(tiny.TRAIN)}
    masks["k003"] = np.ones((4, 4), bool)

    def members(key: str, n: int) -> dict[str, bytes]:
        if key not in masks:
            return {"json": b"{}"}
        buffer = io.BytesIO()
        Image.fromarray(masks[key].astype(np.uint8) * 255).save(buffer, "PNG")
        return {"png": buffer.getvalue()}

    given = {**inputs, "masks": tiny.dataset(tmp_path / "masks", members)}
    made = edited(given)
    for key in ("k000", "k010"):
        n, hidden = int(key[1:]), masks[key]
        assert np.array_equal(pixels(made[key].members["png"])[~hidden], tiny.picture(n)[~hidden])
    assert made["k003"].reject == "mask_of_another_size"
    assert {made[f"k{n:03d}"].reject for n in range(tiny.TRAIN, tiny.TRAIN + tiny.HELD_OUT)} == {"no_mask"}


def test_noise_that_was_added_is_taken_out_again(inputs: dict[str, Any]) -> None:
    """By a denoiser that knows the truth, of pixels that are N(mean, std^2)."""
    from diffusion.autoencoders.identity import IdentityAutoencoder
    from diffusion.latents import LatentStatistics
    from pipelines.editing import Editor
    from tests.diffusion.exact import gaussian

    editor = Editor(inputs["model"])
    object.__setattr__(editor.model, "autoencoder", IdentityAutoencoder())
    object.__setattr__(editor.model, "statistics", LatentStatistics(mean=(0.2,) * 3, std=(0.5,) * 3))
    object.__setattr__(editor.model, "denoiser", gaussian(0.0, torch.full((3, 32, 32), 0.4)))
    object.__setattr__(editor.model, "tile", 32)
    object.__setattr__(editor.model, "classes", 0)
    object.__setattr__(editor.model, "text_width", None)
    editor.least = 32
    rng = np.random.default_rng(0)
    truth = 0.2 + 0.5 * 0.4 * rng.normal(size=(4, 32, 32, 3))
    images = [Image.fromarray(np.round((x.clip(-1, 1) + 1) * 127.5).astype(np.uint8)) for x in truth]
    for noise in (0.05, 0.2):
        done = editor.edit(images, Denoise(noise=noise, add=True), micro_batch=4)
        given, image = (np.stack([getattr(e, name) for e in done]) for name in ("given", "image"))
        errors = {"given": np.square(given / 127.5 - 1 - truth).mean()}
        errors["image"] = np.square(image / 127.5 - 1 - truth).mean()
        pixel, signal = (2 * noise) ** 2, (0.5 * 0.4) ** 2
        assert errors["image"] == pytest.approx(pixel * signal / (pixel + signal), rel=0.1)
        assert errors["image"] < errors["given"]


def test_a_split_alone_is_edited_to_the_same(inputs: dict[str, Any]) -> None:
    whole = edited(inputs, edit=ImageToImage())
    some = edited(inputs, edit=ImageToImage(), splits=("validation",))
    assert len(some) == tiny.HELD_OUT
    assert all(some[key].members["png"] == whole[key].members["png"] for key in some)
    with pytest.raises(ValueError, match="images has no split 'tests'; there are train, validation"):
        edited(inputs, edit=ImageToImage(), splits=("tests",))


def test_mistakes_are_told(inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="inpaint needs `masks`"):
        Edit(images="images", model="model")
    with pytest.raises(ValueError, match="leave them out"):
        Edit(images="images", model="model", masks="m", edit=ImageToImage())
    for wrong in (
        lambda: Denoise(noise=0),
        lambda: ImageToImage(strength=1.5),
        lambda: Inpaint(mask="center", resamplings=0),
    ):
        with pytest.raises(ValueError, match=r"must be|it must"):
            wrong()


def test_images_that_the_network_cannot_take_are_rejected(inputs: dict[str, Any], tmp_path: Path) -> None:
    def members(key: str, n: int) -> dict[str, bytes]:
        buffer = io.BytesIO()
        Image.fromarray(tiny.picture(n)[:8] if n == 2 else tiny.picture(n)).save(buffer, "PNG")
        return {"png": buffer.getvalue()}

    made = edited({**inputs, "images": tiny.dataset(tmp_path / "small", members)}, edit=Inpaint(mask="top"))
    assert {key: sample.reject for key, sample in made.items() if sample.reject} == {"k002": "too_small"}
