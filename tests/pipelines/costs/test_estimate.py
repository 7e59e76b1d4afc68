from __future__ import annotations

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
    assert 2 < found["gate"].seconds / found["cheap"].seconds < 8
    assert found["kept"].seconds < found["cheap"].seconds / 10
