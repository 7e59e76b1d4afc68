"""From a pipeline of diffusers and a folder of pictures to a trained pipeline of diffusers, by one recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.storage import Storage
from pipelines import config, pipeline
from pipelines.__main__ import main
from pipelines.config import Recipe
from pipelines.models import Generator, SnapshotFolder
from pipelines.pipeline import plan
from tests.pipelines import tiny
from tests.pipelines.embedders import folders
from tests.pipelines.embedders.test_several import clip_tokenizer
from tests.pipelines.pretrained import foreign
from tests.pipelines.pretrained.pretrained_line import SCALE
from tests.pipelines.pretrained.tiny_denoisers import CROSS, UNET

torch.set_num_threads(1)
STEPS = 5
RECIPE = """
name: line
stages:
  images: {stage: ingest, source: {kind: folder, path: images}, size: 16}
  captions: {stage: caption, images: images, captioners: [{kind: template, text: a red fox}]}
  text:
    stage: embed
    captions: captions
    text: {kind: transformers, path: sd/text_encoder, tokenizer: sd/tokenizer, max_tokens: 77, padded: true,
           pooled: own}
    empty: true
  latents: {stage: encode, images: images, autoencoder: ./sd, micro_batch: 4}
  model:
    stage: train
    denoiser: {kind: diffusers, path: sd}
    latents: latents
    text: text
    null: encoded
    autoencoder: ./sd
    images_seen: 16
    batch: 4
    optimization: {lr: 1.0e-3, warmup: 4, cooldown: 0}
    sampler: {kind: euler, steps: 5}
    guidance: {scale: 2.0}
"""


def pipeline_folder(folder: Path) -> Path:
    """Stable Diffusion, tiny and random, as diffusers writes it."""
    import diffusers

    torch.manual_seed(0)
    settings = {"vocab_size": 54, "max_position_embeddings": 77, "bos_token_id": 52, "eos_token_id": 53}
    encoder = folders.model(folder / "text", "CLIPTextModel", scale=3.0, **settings)
    made = diffusers.StableDiffusionPipeline(
        vae=foreign.model("AutoencoderKL", scaling_factor=SCALE),
        text_encoder=encoder,
        tokenizer=clip_tokenizer(folder / "tokens"),
        unet=diffusers.UNet2DConditionModel(**UNET | CROSS | {"cross_attention_dim": 16}),
        scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(folder / "sd")
    return folder / "sd"


def read(place: Path, **changes: str) -> Recipe:
    text = RECIPE
    for old, new in changes.items():
        text = text.replace(f"path: {old}}}", f"path: {new}}}")
    (place / "line.yaml").write_text(text)
    return config.load(place / "line.yaml")


def ran(recipe: Recipe, store: Storage) -> tuple[str, ...]:
    return pipeline.run(recipe, store, executor="inline", record=False).ran


@pytest.mark.slow
def test_prompts_draw_the_same_here_and_there(tmp_path: Path) -> None:
    import diffusers

    from diffusion import randomness
    from diffusion.config import EulerConfig, GuidanceConfig
    from pipelines import sampling

    (tmp_path / "images").mkdir()
    for n in range(6):
        Image.fromarray(tiny.picture(n)).save(tmp_path / "images" / f"{n}.png")
    folder, store = pipeline_folder(tmp_path), Storage.at(tmp_path / "store")
    recipe = read(tmp_path)
    assert main(["plan", str(tmp_path / "line.yaml"), "--store", store.url]) == 0
    assert "model" in ran(recipe, store)
    assert ran(recipe, store) == ()
    assert main(["plan", str(tmp_path / "line.yaml"), "--store", store.url]) == 0
    planned = plan(recipe, store)["model"]
    assert planned.folder is not None
    manifest = json.loads(planned.folder.read("manifest.json"))
    assert manifest["inputs"]["denoiser"]["stage"] == "pretrained"
    shutil.copytree(folder, tmp_path / "moved")
    assert plan(read(tmp_path, sd="moved"), store)["model"].state == "done", "paths decide nothing"
    assert plan(read(tmp_path, sd="sd, lora: {rank: 2}"), store)["model"].state == "run"

    snapshot = SnapshotFolder.open(planned.folder)
    out = tmp_path / "out"
    assert main(["export", planned.folder.url, str(out), "--form", "diffusers"]) == 0
    loaded: Any = diffusers.StableDiffusionPipeline.from_pretrained(out)
    loaded.set_progress_bar_config(disable=True)
    generator = Generator(snapshot, device="cpu")
    model, prompts = generator.model, ["a red fox", "snow"]
    _, sigma = model.denoiser.schedule.at(1.0)
    theirs = loaded(
        prompts,
        latents=sigma * randomness.normal(3, np.arange(2), model.shape, "generate"),
        num_inference_steps=STEPS,
        guidance_scale=2.0,
        output_type="np",
    ).images
    texts = generator.embed(prompts)
    ours = sampling.draw(
        model,
        [sampling.Drawing(index=n, text=texts[prompt]) for n, prompt in enumerate(prompts)],
        seed=3,
        sampler=EulerConfig(steps=STEPS),
        guidance=GuidanceConfig(scale=2.0),
        micro_batch=2,
    )
    # What rounding of the vectors to fp16 and of pixels to 8 bits adds beside 2e-3.
    assert np.abs(np.stack(ours) / 255 - theirs).max() <= 2e-3 + 0.5 / 255
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05


def test_a_model_of_the_hub_is_named_by_its_commit(tmp_path: Path) -> None:
    pinned = f"{foreign.REPO}@{foreign.COMMIT}"
    stage: Any = read(tmp_path, sd=pinned).stages["model"]
    assert stage.denoiser.path == f"hub:{pinned}"
    assert stage.named()["denoiser"] == f"hub:{pinned}"
    with pytest.raises(ValueError, match="there is no such field"):
        read(tmp_path, sd="sd, rank: 2")
