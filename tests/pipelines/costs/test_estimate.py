from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipelines import config
from pipelines.costs.estimate import ASSUMED, Costs, estimate
from pipelines.runner.plan import plan


def costs(recipe: str, store: Path, flags: list[str] | None = None, **given: object) -> Costs:
    planned = plan(config.load(recipe, flags or []), Storage.at(store), lenient=True)
    return estimate(planned, **{"cores": 2.0, **given})  # type: ignore[arg-type]


def test_the_quickstart_takes_what_it_was_measured_to_take(tmp_path: Path) -> None:
    """On 2 cores without a GPU, within a factor of two; 2026-11-22."""
    found = costs("quickstart", tmp_path)
    assert found.total.seconds == pytest.approx(629, rel=0.3)
    for name, seconds in {"autoencoder": 135, "latents": 8.5, "model": 387, "pictures": 29.4}.items():
        assert 0.5 < (found.stages[name].seconds or 0) / seconds < 2, name
    for name, size in {"images": 8.5e6, "captions": 3.3e6, "latents": 4.9e6, "pictures": 1.5e6}.items():
        assert 0.4 < (found.stages[name].bytes or 0) / size < 2.5, name
    assert found.gpu_hours == 0


def test_the_recipe_at_real_size_is_costed_without_its_source(tmp_path: Path) -> None:
    found = costs("text_to_image_256", tmp_path, images=12_000_000)
    assert all(cost.bytes is not None and cost.seconds is not None for cost in found.stages.values())
    model = found.stages["model"]
    # forward and twice that backward of 56 GFLOP (counted by torch in test_arithmetic), 256 million times
    assert model.flops == pytest.approx(3 * 54e9 * 256e6, rel=0.05)
    assert model.seconds == pytest.approx(model.flops / (8 * 200e12), rel=0.01)
    assert model.gpus == 8
    assert found.gpu_hours == pytest.approx(
        sum(c.gpus * (c.seconds or 0) / 3600 for c in found.stages.values())
    )
    latents = found.stages["latents"]
    assert latents.bytes == pytest.approx(12e6 * (2 * 4 * 32 * 32 * 2 + 128), rel=0.1)
    assert any("12,000,000 images at s3://BUCKET/photographs" in line for line in found.assumptions)


def test_what_is_supposed_changes_what_depends_on_it(tmp_path: Path) -> None:
    one, ten = (costs("text_to_image_256", tmp_path, images=n) for n in (ASSUMED, 10 * ASSUMED))
    assert costs("text_to_image_256", tmp_path).stages == one.stages
    for name in ("images", "captions", "latents", "text"):
        assert ten.stages[name].bytes == pytest.approx(10 * (one.stages[name].bytes or 0), rel=0.01)
    assert ten.stages["model"] == one.stages["model"]
    a100 = costs("text_to_image_256", tmp_path, gpu="a100")
    assert (a100.stages["model"].seconds or 0) / (one.stages["model"].seconds or 1) == pytest.approx(
        200 / 77, rel=0.01
    )
    halved = costs("text_to_image_256", tmp_path, ["--model.resources.workers", "4"])
    assert (halved.stages["model"].seconds or 0) == pytest.approx(
        2 * (one.stages["model"].seconds or 0), rel=0.01
    )


def test_every_shipped_recipe_has_its_costs(tmp_path: Path) -> None:
    for name in config.shipped():
        # to read seventy thousand garments takes seconds, and here is none of them needed
        found = costs(name, tmp_path, ["--images.source.path", str(tmp_path / "nowhere")])
        assert (found.total.seconds or 0) > 60, name
        assert found.assumptions, name


def test_a_plan_of_the_recipe_at_real_size_is_soon_there(tmp_path: Path) -> None:
    code = (
        "import sys; from pipelines.__main__ import main;"
        f"assert main(['plan', 'text_to_image_256', '--store', {str(tmp_path)!r}, '--gpu-hour', '2']) == 0;"
        "assert not {'torch', 'ray', 'mlflow', 's3fs'} & set(sys.modules)"
    )
    start = time.monotonic()
    env = {**os.environ, "COLUMNS": "240"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert time.monotonic() - start < 20  # a second or two on an idle machine
    assert "write your bucket's name for BUCKET" in done.stdout
    assert "GPU hours" in done.stdout
    assert " at 2 an hour" in done.stdout
    assert not list(tmp_path.iterdir())


def test_what_is_finished_says_what_it_holds(tmp_path: Path) -> None:
    """And what reads it from outside its recipe knows its size; nothing is supposed of it any more."""
    recipe = tmp_path / "draw.yaml"
    model = Path(config.RECIPES).parent / "snapshots" / "emoji3d"
    recipe.write_text(
        f"name: draw\nstages:\n  pictures: {{stage: generate, model: {model}, prompts: [a fox], count: 512,"
        " sampler: {kind: heun, steps: 12}, guidance: {scale: 3.0}}\n"
    )
    found = costs(str(recipe), tmp_path / "store")
    # 109 s when the shipped recipe drew as many on 2 cores
    assert 0.5 < (found.stages["pictures"].seconds or 0) / 109 < 2
    assert not any("not there" in line or "lossless" in line for line in found.assumptions)


def test_scoring_costs_what_its_scorers_do_and_a_filter_next_to_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\n"
        "stages:\n"
        "  images: {stage: ingest, source: {kind: folder, path: nowhere}, size: 64}\n"
        "  cheap: {stage: score, images: images}\n"
        "  gate: {stage: score, images: images, scorers: [{kind: nsfw}, {kind: sharpness}, {kind: size}]}\n"
        "  kept: {stage: filter, scores: [cheap, gate], keep: {nsfw: {max: 0.2}}}\n"
    )
    found = costs(str(recipe), tmp_path / "store", images=100_000).stages
    gate, cheap, kept = (found[name].seconds or 0 for name in ("gate", "cheap", "kept"))
    assert 2 < gate / cheap < 8
    assert 0 < kept < cheap / 10


def captions(tmp_path: Path, captioner: str) -> tuple[float, float, str]:
    """Seconds and price of captions of 100,000 images, and what is supposed."""
    recipe = tmp_path / "c.yaml"
    recipe.write_text(
        "name: c\n"
        "stages:\n"
        "  images: {stage: ingest, source: {kind: folder, path: nowhere}, size: 256}\n"
        f"  said: {{stage: caption, images: images, captioners: [{captioner}]}}\n"
    )
    found = costs(str(recipe), tmp_path / "store", images=100_000)
    return found.stages["said"].seconds or 0.0, found.total.price, "; ".join(found.assumptions)


def test_captions_cost_what_their_captioner_does(tmp_path: Path) -> None:
    words, price, _ = captions(tmp_path, '{kind: template, text: "{text}"}')
    assert (words < 60, price) == (True, 0)
    tags, _, _ = captions(tmp_path, "{kind: tags}")
    nowhere = tmp_path / "nowhere"
    clip, _, told = captions(tmp_path, f"{{kind: open_clip, path: {nowhere}, tags: [a, b]}}")
    assert "as ViT-B/32 takes" in told
    model, _, told = captions(tmp_path, f"{{kind: transformers, path: {nowhere}}}")
    assert f"250 million parameters, as {nowhere} is not here" in told
    assert words < tags / 10 < clip / 20 < model / 40


def test_a_captioner_that_is_there_is_costed_by_its_size(tmp_path: Path) -> None:
    """numpy counts its parameters; an eighth of the size takes an eighth of the passes."""
    import numpy as np
    from safetensors.numpy import save_file

    seconds = []
    for name, width in (("small", 1000), ("large", 8000)):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"a": np.zeros((width, 1000), np.float16)}, folder / "model.safetensors")
        taken, _, told = captions(tmp_path, f"{{kind: transformers, path: {folder}, micro_batch: 10000}}")
        assert f"{width // 1000} million parameters" in told
        seconds.append(taken)
    assert 3 < seconds[1] / seconds[0] <= 8
    tower = {"model_cfg": {"vision_cfg": {"width": 1024, "layers": 24, "patch_size": 14, "image_size": 224}}}
    (folder / "open_clip_config.json").write_text(json.dumps(tower))
    _, _, told = captions(tmp_path, f"{{kind: open_clip, path: {folder}, tags: [a, b]}}")
    # open_clip's own table of profiles has 162, attention's products included
    assert "1.6e+02 GFLOP an image (24 layers of 1024, 257 tokens)" in told


def test_an_endpoint_costs_money_and_the_time_of_its_answers(tmp_path: Path) -> None:
    asked = (
        "{kind: endpoint, url: 'http://host/v1', model: seer, prompt: Describe., price_in: 2, price_out: 8"
    )
    seconds, price, told = captions(tmp_path, f"{asked}, concurrency: 50}}")
    # 256 x 256 px in pieces of 28 x 28, 22 tokens of words around them, and 30 that come back
    assert price == pytest.approx(100_000 * ((84 + 22) * 2 + 30 * 8) / 1e6)
    assert "106 tokens in and 30 out" in told
    assert seconds == pytest.approx(100_000 * 2 / 50, rel=0.3)
    slower, _, _ = captions(tmp_path, f"{asked}, concurrency: 5}}")
    assert slower / seconds == pytest.approx(10, rel=0.3)


def test_finding_copies_costs_what_its_method_does(tmp_path: Path) -> None:
    recipe = tmp_path / "d.yaml"
    recipe.write_text(
        "name: d\n"
        "stages:\n"
        "  images: {stage: ingest, source: {kind: folder, path: nowhere}, size: 256}\n"
        "  equal: {stage: deduplicate, images: images, by: {kind: exact}}\n"
        "  hashed: {stage: deduplicate, images: images, by: {kind: perceptual}}\n"
        "  alike: {stage: deduplicate, images: images}\n"
        "  captions: {stage: caption, images: images, keep: alike}\n"
    )
    found = costs(str(recipe), tmp_path / "store", images=100_000).stages
    equal, hashed, alike = (found[name].seconds or 0 for name in ("equal", "hashed", "alike"))
    assert 0 < equal < hashed / 5 < alike / 50
    assert found["alike"].flops == pytest.approx(100_000 * 0.78e9)


def test_columns_make_up_what_a_dataset_takes(tmp_path: Path) -> None:
    found = costs("text_to_image_256", tmp_path, images=1_000_000).stages
    for name in ("images", "captions", "latents", "text", "pictures"):
        cost = found[name]
        assert cost.bytes == pytest.approx(cost.samples * sum(cost.columns.values())), name
    # fp16 mean and deviation of 4 channels at an eighth of the side, in a tar
    assert found["latents"].columns["moments.npy"] == pytest.approx(2 * 4 * 32 * 32 * 2 + 128 + 512, rel=0.03)
    assert found["text"].columns["text.npy"] > found["text"].columns["pooled.npy"]


def test_latents_are_of_the_images_size_and_not_of_the_autoencoders_training(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    model = Path(config.RECIPES).parent / "snapshots" / "emoji3d"  # trained at 48 px
    recipe.write_text(
        "name: r\nstages:\n"
        "  images: {stage: ingest, source: {kind: folder, path: nowhere}, size: 96}\n"
        f"  latents: {{stage: encode, images: images, autoencoder: {model}, flips: true}}\n"
    )
    found = costs(str(recipe), tmp_path / "store", images=1000).stages["latents"]
    assert set(found.columns) == {"moments.npy", "flipped.moments.npy", "index"}
    assert found.columns["moments.npy"] == 512 + 512 * -(-(128 + 8 * 24 * 24 * 2) // 512)


def test_a_clip_of_the_line_costs_what_its_towers_do_and_not_what_open_clips_would(tmp_path: Path) -> None:
    found = costs("clip", tmp_path).stages
    vectors = found["vectors"]
    # MiniLM's on each caption and EfficientNet-Lite0's on each image
    captions = vectors.flops - 1599 * 0.78e9
    assert captions == pytest.approx(3 * 1599 * 0.35e9, rel=0.4)
    assert (found["clip"].seconds or 0) > 30


def test_what_ran_before_tells_how_long_it_takes(tmp_path: Path) -> None:
    """On other data, with the same settings; a run that copied its samples says nothing of that."""
    from pipelines.costs import history

    planned = plan(config.load("quickstart", []), Storage.at(tmp_path), lenient=True).stages[0]
    assert planned.identity is not None
    folder = tmp_path / "ingest" / "other"
    folder.mkdir(parents=True)
    manifest = {
        "meaning": dict(planned.identity.meaning),
        "external": dict(planned.identity.external),
        "version": planned.identity.version,
        "counts": {"committed": 1000},
        "inputs": {},
        "execution": {"seconds": 104.0, "resources": {}, "whole": True},
    }
    for whole, expected in ((True, 1004.0), (False, None)):
        manifest["execution"]["whole"] = whole
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert history.seconds(planned, 10_000) == expected
    manifest |= {"execution": {**manifest["execution"], "whole": True}, "meaning": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert history.seconds(planned, 10_000) is None


def test_an_autoencoder_of_diffusers_is_costed_by_its_config_alone(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    settings = {"_class_name": "AutoencoderKL", "latent_channels": 16, "block_out_channels": [32, 64, 64]}
    settings |= {"sample_size": 64, "norm_num_groups": 8}
    settings |= {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    recipe = tmp_path / "v.yaml"
    recipe.write_text(
        "name: v\nstages:\n"
        "  images: {stage: ingest, source: {kind: folder, path: nowhere}, size: 128}\n"
        f"  latents: {{stage: encode, images: images, autoencoder: {tmp_path}/vae, also: [64]}}\n"
    )
    found = costs(str(recipe), tmp_path / "store", images=1000).stages["latents"]
    # a quarter of the side, twice 16 channels
    assert found.columns["moments.npy"] == pytest.approx(32 * 32 * 32 * 2, rel=0.02)
    assert found.columns["at64.moments.npy"] == pytest.approx(32 * 16 * 16 * 2, rel=0.1)
