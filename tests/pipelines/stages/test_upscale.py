from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.config import EulerConfig
from pipelines import embedders
from pipelines.stage import Sample
from pipelines.stages.generate import Generate, UpscalingConfig
from pipelines.stages.upscale import Upscale
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line")
    pixels, line = tiny.pixels_line(folder), tiny.line(folder)
    upscaler = tiny.run(tiny.train_upscaler(images_seen=64), tiny.session(folder / "a", pixels))
    model = tiny.run(tiny.train(images_seen=16), tiny.session(folder / "b", line))
    return {"images": tiny.images(folder / "named"), "upscaler": upscaler, "model": model}


@pytest.fixture(autouse=True)
def _embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "load_text", lambda record: tiny.Embedder())


def upscaled(inputs: dict[str, Any], **fields: Any) -> dict[str, Sample]:
    stage = Upscale(images="images", model="upscaler", sampler=EulerConfig(steps=2), **fields)
    given = {"images": inputs["images"], "model": inputs["upscaler"]}
    call = stage.open(given)
    return {
        sample.key: sample for shard in stage.plan(given) for sample in call(shard, stage.rows(given, shard))
    }


def size(sample: Sample) -> tuple[int, int]:
    return Image.open(io.BytesIO(sample.members["png"])).size


def test_every_image_is_drawn_larger_with_what_it_came_with(inputs: dict[str, Any]) -> None:
    made = upscaled(inputs)
    assert len(made) == tiny.TRAIN + tiny.HELD_OUT
    assert {size(sample) for sample in made.values()} == {(32, 32)}
    said = json.loads(made["k003"].members["json"])
    assert said["text"] == "thing 3"
    assert (said["upscaled"]["factor"], said["upscaled"]["level"]) == (2, 0.0)
    assert said["upscaled"]["snapshot"] == inputs["upscaler"].digest()
    assert made["k004"].members["cls"] == b"1"


def test_an_image_is_the_same_however_it_is_cut(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Batches may hold other images; a batch's size is part of what is asked."""
    whole = upscaled(inputs, micro_batch=4)
    stage = Upscale(images="images", model="upscaler", sampler=EulerConfig(steps=2), micro_batch=4)
    given = {"images": inputs["images"], "model": inputs["upscaler"]}
    shard = stage.plan(given)[0]
    rows = stage.rows(given, shard)[5:8]
    for sample in stage.open(given)(shard, rows):
        assert sample.members["png"] == whole[sample.key].members["png"]


def test_generate_draws_through_a_chain(inputs: dict[str, Any]) -> None:
    def drawn(*chain: str) -> dict[int, Sample]:
        stage = Generate(
            model="base",
            prompts=("thing 1", "thing 2"),
            count=2,
            sampler=EulerConfig(steps=2),
            micro_batch=2,
            upscalers=chain,
            upscaling=UpscalingConfig(sampler=EulerConfig(steps=2)),
        )
        given = {"model": inputs["model"], "images": None, "captions": None}
        given["upscalers"] = tuple(inputs[name] for name in chain)
        (shard,) = stage.plan(given)
        rows = stage.rows(given, shard)
        made = stage.open(given)(shard, rows)
        return {row.data["index"]: sample for row, sample in zip(rows, made, strict=True)}

    plain, once, twice = drawn(), drawn("upscaler"), drawn("upscaler", "upscaler")
    assert [size(of[0]) for of in (plain, once, twice)] == [(16, 16), (32, 32), (64, 64)]
    assert len({of[0].key for of in (plain, once, twice)}) == 3
    said = json.loads(once[0].members["json"])
    assert said["upscalers"] == [inputs["upscaler"].digest()]
    assert "upscalers" not in json.loads(plain[0].members["json"])
    # what is enlarged is what was drawn
    small = np.asarray(Image.open(io.BytesIO(plain[1].members["png"])), dtype=float)
    large = Image.open(io.BytesIO(once[1].members["png"])).resize((16, 16), Image.Resampling.BOX)
    other = np.asarray(Image.open(io.BytesIO(plain[0].members["png"])), dtype=float)
    assert np.abs(np.asarray(large) - small).mean() < np.abs(np.asarray(large) - other).mean()


def test_what_came_later_leaves_fingerprints_as_they_were() -> None:
    """Stores hold outputs that were named before these fields were there."""
    generate = Generate(model="base").meaning()
    assert "upscaling" not in generate
    assert "upscaling" in Generate(model="base", upscaling=UpscalingConfig(level=0.2)).meaning()
    assert "low_resolution" not in tiny.train().meaning()
    assert "low_resolution" in tiny.train_upscaler().meaning()
