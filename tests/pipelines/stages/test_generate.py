from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.config import DDPMConfig, EulerConfig, SamplerConfig
from pipelines import embedders
from pipelines.stage import Row, Sample
from pipelines.stages.generate import Generate
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    line = tiny.line(folder)
    model = tiny.run(tiny.train(images_seen=160), tiny.session(folder, line))
    captions = tiny.captions(folder / "captions")
    return {"model": model, "images": line["images"], "captions": captions, "upscalers": ()}


@pytest.fixture(autouse=True)
def _embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "load_text", lambda record: tiny.Embedder())


def stage(**fields: Any) -> Generate:
    return Generate(
        **{"model": "base", "count": 10, "sampler": EulerConfig(steps=2), "micro_batch": 4, **fields}
    )


def made(stage: Generate, inputs: dict[str, Any]) -> tuple[list[Row], dict[int, Sample]]:
    """All rows, and the samples by index."""
    given = {name: inputs[name] if getattr(stage, name) else None for name in ("model", "images", "captions")}
    given["upscalers"] = tuple(inputs[name] for name in stage.upscalers)
    rows, samples = [], {}
    function = stage.open(given)
    for shard in stage.plan(given):
        of = stage.rows(given, shard)
        assert [row.key for row in of] == sorted({row.key for row in of})
        assert len(of) == shard.count
        for row, sample in zip(of, function(shard, of), strict=True):
            assert row.key == sample.key
            samples[row.data["index"]] = sample
        rows += of
    return rows, samples


@pytest.mark.parametrize("sampler", [EulerConfig(steps=2), DDPMConfig(steps=2)])
def test_images_do_not_depend_on_how_they_are_cut(inputs: dict[str, Any], sampler: SamplerConfig) -> None:
    """Nor does the noise that a sampler draws on its way."""
    words = ("thing 1", "thing 2", "thing 4 with so many words that its tokens are padded to another length")
    _, whole = made(stage(prompts=words, sampler=sampler), inputs)
    _, cut = made(stage(prompts=words, sampler=sampler, samples_per_shard=3), inputs)
    _, more = made(stage(prompts=words, sampler=sampler, count=13, samples_per_shard=7), inputs)

    assert sorted(whole) == list(range(10))
    assert cut == whole
    assert {n: more[n] for n in range(10)} == whole
    assert len({sample.members["png"] for sample in more.values()}) == 13


def test_seed_draws_other_images_under_other_keys(inputs: dict[str, Any]) -> None:
    _, first = made(stage(count=2), inputs)
    _, second = made(stage(count=2, seed=1), inputs)
    assert first[0].members["png"] != second[0].members["png"]
    assert first[0].key != second[0].key


def test_says_how_each_came_to_be(inputs: dict[str, Any]) -> None:
    asked = stage(prompts=("thing 1",), classes=("cross", "circle"), count=3, seed=5)
    _, samples = made(asked, inputs)

    said = json.loads(samples[1].members["json"])
    assert {k: said[k] for k in ("prompt", "label", "seed", "index", "steps", "generated")} == {
        "prompt": "a drawing of thing 1",
        "label": "circle",
        "seed": 5,
        "index": 1,
        "steps": 2,
        "generated": True,
    }
    assert said["snapshot"] == inputs["model"].digest()
    assert samples[1].members["txt"] == b"a drawing of thing 1"
    assert [samples[n].members["cls"] for n in range(3)] == [b"2", b"0", b"2"]
    assert asked.finish(inputs, None) == {"classes": tiny.CLASSES}


def test_datasets_own_distribution(inputs: dict[str, Any]) -> None:
    """Each training image's class and one of its captions, before any is drawn again; held-out ones never."""
    asked = stage(images="images", captions="captions", count=2 * tiny.TRAIN)
    given = dict(inputs)
    (shard,) = asked.plan(given)
    rows = sorted(asked.rows(given, shard), key=lambda row: row.data["index"])

    first, second = rows[: tiny.TRAIN], rows[tiny.TRAIN :]
    truth = Counter((tiny.CLASSES[n % 3], f"a drawing of thing {n % 5}") for n in range(tiny.TRAIN))
    for epoch in (first, second):
        pairs = [(row.data["label"], row.data["prompt"].partition(" in colour")[0]) for row in epoch]
        assert Counter(pairs) == truth
    assert [r.data["label"] for r in first] != [r.data["label"] for r in second]
    longer = sum("in colour" in row.data["prompt"] for row in rows)
    assert 0 < longer < tiny.TRAIN  # a quarter of the weight


def test_webp_is_lossless(inputs: dict[str, Any]) -> None:
    def pixels(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    _, png = made(stage(count=2), inputs)
    _, webp = made(stage(count=2, format="webp"), inputs)
    np.testing.assert_array_equal(pixels(png[1].members["png"]), pixels(webp[1].members["webp"]))


def test_file_of_prompts(inputs: dict[str, Any], tmp_path: Path) -> None:
    listed = tmp_path / "prompts.jsonl"
    listed.write_text('{"prompt": "thing 1", "label": "cross"}\n{"prompt": "thing 2", "label": "circle"}\n')
    asked = stage(file=listed, count=3)
    rows, _ = made(asked, inputs)

    asks = {row.data["index"]: (row.data["prompt"], row.data["label"]) for row in rows}
    one, two = ("a drawing of thing 1", "cross"), ("a drawing of thing 2", "circle")
    assert asks == {0: one, 1: two, 2: one}
    said = asked.external()
    moved = listed.rename(tmp_path / "moved.jsonl")
    assert stage(file=moved).external() == said
    assert stage(file=moved).meaning() == stage().meaning()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no prompts"),
        ('{"prompt": "a"}\nno', "line 2: not JSON"),
        ('{"other": 1}', "line 1: expected"),
    ],
)
def test_file_that_says_nothing(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(ValueError, match=said):
        stage(file=tmp_path / "prompts.jsonl").external()


def test_one_place_for_prompts() -> None:
    with pytest.raises(ValueError, match="keep one"):
        stage(prompts=("a",), captions="captions")


def test_arrangement_is_not_work() -> None:
    assert stage(count=10).work() == stage(count=99, samples_per_shard=5).work()
    assert stage().work() != stage(micro_batch=5).work()
