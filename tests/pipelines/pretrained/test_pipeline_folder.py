"""Pipelines of diffusers, drawn with as they are: what diffusers itself draws is the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.storage import Storage
from diffusion import randomness
from diffusion.config import EulerConfig
from pipelines import config, editing, models, pictures
from pipelines.__main__ import main
from pipelines.dataset import Dataset
from pipelines.pipeline import run
from pipelines.pretrained.adoption import adopted
from tests.pipelines.pretrained.tiny_pipelines import CLASSES, FACTOR, SIDE, drawn, pipeline

torch.set_num_threads(1)
STEPS, SEED = 4, 3
PROMPTS = ["a red fox", "snow"]


def close(found: Any, expected: np.ndarray) -> None:
    """To 2e-3 of the range, and what rounding to 8 bits adds."""
    got = np.stack([np.asarray(image) for image in found]).astype(np.float32)
    assert np.abs(got - expected * 255).max() <= 0.5 + 2e-3 * 255


def noise(generator: models.Generator) -> torch.Tensor:
    _, sigma = generator.model.denoiser.schedule.at(1.0)
    return sigma * randomness.normal(SEED, np.arange(2), generator.model.shape, "generate")


@pytest.mark.parametrize(
    "shape",
    ["sd1", *(pytest.param(shape, marks=pytest.mark.slow) for shape in ("sdxl", "sd3", "flux"))],
)
def test_prompts_draw_what_the_pipeline_draws(shape: str, tmp_path: Path):
    made, scale = pipeline(shape, tmp_path), 1.0 if shape == "flux" else 3.0
    generator = models.load(tmp_path / "sd", store=tmp_path / "store", device="cpu")
    assert generator.model.shape == (4, SIDE, SIDE)
    # FLUX has its guidance in the network, and shifts times by the size of the image.
    told = 3.5 if shape == "flux" else scale
    theirs = drawn(made, shape, noise(generator), STEPS, told, prompt=PROMPTS)
    ours = generator.generate(PROMPTS, seed=SEED, steps=STEPS, guidance=scale, micro_batch=2)
    close(ours, theirs)
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05

    again = models.load(tmp_path / "sd", store=tmp_path / "store", device="cpu")
    assert again.folder.storage.url == generator.folder.storage.url


def test_classes_draw_what_the_pipeline_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from diffusers.pipelines.dit import pipeline_dit

    made = pipeline("dit", tmp_path)
    generator = models.load(tmp_path / "sd", store=tmp_path / "store", device="cpu")
    assert generator.classes[:4] == [*CLASSES, "3"]
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **given: noise(generator))
    theirs = made([2, 1], guidance_scale=3.0, num_inference_steps=STEPS, output_type="np").images
    ours = generator.generate(classes=["owl", "dog"], seed=SEED, steps=STEPS, guidance=3.0, micro_batch=2)
    close(ours, theirs)


def test_pixels_are_drawn_without_an_autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from diffusers.pipelines.ddim import pipeline_ddim

    made = pipeline("plain", tmp_path)
    generator = models.load(tmp_path / "sd", store=tmp_path / "store", device="cpu")
    monkeypatch.setattr(pipeline_ddim, "randn_tensor", lambda *shape, **given: noise(generator))
    theirs = made(batch_size=2, num_inference_steps=STEPS, output_type="np").images
    close(generator.generate(count=2, seed=SEED, steps=STEPS, micro_batch=2), theirs)


def test_it_edits(tmp_path: Path):
    pipeline("sd1", tmp_path)
    editor = editing.load(tmp_path / "sd", store=tmp_path / "store", device="cpu")
    image = editor.generator.generate(["snow"], steps=1)[0]
    assert image.size == (SIDE * FACTOR, SIDE * FACTOR)
    sampler = EulerConfig(steps=2)
    (same,) = editor.edit([image], editing.ImageToImage(strength=0.0), prompts=["snow"], sampler=sampler)
    (other,) = editor.edit([image], editing.ImageToImage(strength=1.0), prompts=["fox"], sampler=sampler)
    assert not np.array_equal(same.image, other.image)


def test_a_command_and_a_recipe_draw_and_edit_with_it(tmp_path: Path):
    pipeline("sd1", tmp_path)
    given = ["--model", str(tmp_path / "sd"), "--seed", str(SEED), "--steps", "2", "--guidance", "3"]
    places = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert main(["generate", *PROMPTS, *given, *places, "--json"]) == 0
    (first, second) = (np.asarray(Image.open(file)) for file in sorted((tmp_path / "out").glob("*.png")))
    assert first.shape == (SIDE * FACTOR, SIDE * FACTOR, 3)
    assert not np.array_equal(first, second)

    drawing = {"prompts": PROMPTS, "count": 2, "seed": SEED, "sampler": {"kind": "euler", "steps": 2}}
    drawing |= {"stage": "generate", "model": "./sd", "guidance": {"scale": 3.0}}
    again = {"stage": "edit", "images": "pictures", "model": "./sd", "sampler": {"kind": "euler", "steps": 2}}
    again |= {"edit": {"kind": "image_to_image", "strength": 1.0}}
    text = json.dumps({"name": "foreign", "stages": {"pictures": drawing, "again": again}})
    recipe = config.parse(text, name="foreign.yaml", folder=tmp_path)
    done = run(recipe, Storage.at(tmp_path / "store"), executor="inline", record=False).plan
    (drawn_again, edited) = (dataset(done[name].folder) for name in ("pictures", "again"))
    by_prompt = {said["prompt"]: image.astype(int) for said, image in drawn_again}
    assert set(by_prompt) == set(PROMPTS)
    # The same seed and index, but another batch.
    assert np.abs(by_prompt[PROMPTS[0]] - first).max() <= 1
    assert len(edited) == 2
    for (_, one), (_, other) in zip(drawn_again, edited, strict=True):
        assert one.shape == other.shape == first.shape
        assert not np.array_equal(one, other)


def dataset(storage: Storage | None) -> list[tuple[dict[str, Any], np.ndarray]]:
    """What is said of each image, and its pixels."""
    assert storage is not None
    opened = Dataset.open(storage)
    return [
        (json.loads(record.members["json"]), np.asarray(pictures.decode(record.members["image"])))
        for shard in opened.shards
        for record in opened.read(shard.name, columns=("image", "json"))
    ]


def _index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("shape", "changes", "said"),
    [
        (
            "sd1",
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            "text_encoder is a T5EncoderModel, and",
        ),
        ("sd1", {"text_encoder": [None, None]}, "text_encoder is not there"),
        ("sd1", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "with a text_encoder_2, which is not"),
        ("dit", {"text_encoder": ["transformers", "CLIPTextModel"]}, "with a text_encoder, which is not"),
        ("dit", {"vae": [None, None]}, "takes 4 channels, and of latents there are 3"),
    ],
)
def test_pipelines_that_are_not_supported_are_told_in_one_line(
    shape: str, changes: dict[str, Any], said: str, tmp_path: Path
):
    pipeline(shape, tmp_path)
    _index(tmp_path / "sd", **changes)
    with pytest.raises(ValueError, match=said) as told:
        models.load(tmp_path / "sd", store=tmp_path / "store")
    assert "\n" not in str(told.value)


def test_what_is_no_pipeline_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match="no finished snapshot at .* and no pipeline of diffusers"):
        models.load(tmp_path, store=tmp_path / "store")
    assert adopted(str(tmp_path), Storage.at(tmp_path / "store"), part="pipeline") is None
