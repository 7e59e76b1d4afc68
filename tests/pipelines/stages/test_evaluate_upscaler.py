from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.scoring.upscaling import table
from pipelines.stages.evaluate_upscaler import EvaluateUpscaler
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line")
    line = tiny.pixels_line(folder)
    models = [
        tiny.run(
            tiny.train_upscaler(images_seen=64, objective=objective), tiny.session(folder / objective, line)
        )
        for objective in ("flow", "regression")
    ]
    return {"images": line["originals"], "models": tuple(models)}


def evaluated(inputs: dict[str, Any], folder: Path, **fields: Any) -> tuple[dict[str, Any], tiny.TinySession]:
    stage = EvaluateUpscaler(
        images="images", models=("ours", "other"), split="validation", bootstrap=200, shown=3, **fields
    )
    session = tiny.session(folder, inputs)
    return stage.run(session), session


def test_bicubic_is_measured_as_by_hand(inputs: dict[str, Any], tmp_path: Path) -> None:
    said, session = evaluated(inputs, tmp_path)
    rows = said["upscaling"]["rows"]
    assert [row["name"] for row in rows] == ["bicubic", "ours", "other"]
    assert {row["n"] for row in rows} == {tiny.HELD_OUT}

    weights = np.array([65.481, 128.553, 24.966]) / 255
    found = []
    for n in range(tiny.TRAIN, tiny.TRAIN + tiny.HELD_OUT):
        truth = tiny.picture(n)
        small = Image.fromarray(truth).resize((8, 8), Image.Resampling.BICUBIC)
        large = np.asarray(small.resize((16, 16), Image.Resampling.BICUBIC)).astype(float)
        error = ((large - truth) @ weights)[2:-2, 2:-2]
        found.append(10 * np.log10(255**2 / np.square(error).mean()))
    # Pillow rounds between its two passes
    assert rows[0]["psnr"]["value"] == pytest.approx(np.mean(found), abs=0.1)
    assert rows[0]["psnr"]["low"] < rows[0]["psnr"]["value"] < rows[0]["psnr"]["high"]
    assert json.loads(session.output.read("metrics.json")) == said["upscaling"]
    assert session.output.exists("upscaled.png")
    assert {event["kind"] for event in session.events} == {"progress", "metrics", "picture"}


def test_gains_are_paired(inputs: dict[str, Any], tmp_path: Path) -> None:
    rows = evaluated(inputs, tmp_path)[0]["upscaling"]["rows"]
    for row in rows[1:]:
        gain = row["lpips_over_bicubic"]["value"]
        assert gain == pytest.approx(row["lpips"]["value"] - rows[0]["lpips"]["value"])


def test_the_answer_does_not_depend_on_how_images_are_dealt_out(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    first, _ = evaluated(inputs, tmp_path / "a", micro_batch=2)
    session = tiny.session(tmp_path / "b", inputs)
    backwards = tiny.TinySession.map
    session.map = lambda factory, items: backwards(session, factory, items[::-1])  # type: ignore[method-assign]
    stage = EvaluateUpscaler(
        images="images",
        models=("ours", "other"),
        split="validation",
        bootstrap=200,
        shown=3,
        micro_batch=2,
    )
    assert stage.run(session) == first


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.3, -0.1, "looks more like"), (0.1, 0.3, "looks less like"), (-0.1, 0.1, "cannot be told")],
)
def test_the_verdict_needs_an_interval_on_one_side(low: float, high: float, said: str) -> None:
    interval = {"value": 0.1, "low": 0.0, "high": 0.2}
    bicubic = {"name": "bicubic", "n": 9, "lpips": interval, "psnr": interval, "consistency": interval}
    gain = {"value": (low + high) / 2, "low": low, "high": high}
    ours = {**bicubic, "name": "ours", "lpips_over_bicubic": gain}
    told = table({"factor": 2, "split": "test", "rows": [bicubic, ours]})
    assert said in told["says"]
    assert [len(row) for row in told["rows"]] == [len(told["columns"])] * 2


def test_a_split_without_images_is_said(inputs: dict[str, Any], tmp_path: Path) -> None:
    stage = EvaluateUpscaler(images="images", models=("ours", "other"))
    with pytest.raises(ValueError, match="no images in its test split"):
        stage.run(tiny.session(tmp_path, inputs))


def test_other_models_are_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    autoencoder = tiny.autoencoder(tmp_path / "autoencoder")
    stage = EvaluateUpscaler(images="images", models=("vae",))
    with pytest.raises(ValueError, match="compares upscalers of one factor; vae are not"):
        stage.run(tiny.session(tmp_path, {"images": inputs["images"], "models": (autoencoder,)}))
    with pytest.raises(ValueError, match="at least one"):
        EvaluateUpscaler(images="images", models=())
