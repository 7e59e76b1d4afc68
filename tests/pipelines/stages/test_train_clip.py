from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.config import OptimizationConfig
from pipelines.clip.config import OpenClip
from pipelines.dataset import Dataset
from pipelines.embedders import OpenClipImages, OpenClipTexts
from pipelines.shards import canonical
from pipelines.stages.evaluate_clip import EvaluateClip
from pipelines.stages.train_clip import TrainClip
from tests.pipelines import tiny

ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
OPTIMIZATION = OptimizationConfig(lr=3e-3, warmup=0)


REDS = ("black", "dark", "brown", "ruby", "red", "crimson")


def captions(folder: Path) -> Dataset:
    """What the red of `tiny.picture` is called, and something else that is true of all."""

    def members(key: str, n: int) -> dict[str, bytes]:
        said = [{"text": REDS[n % 6], "weight": 3.0}, {"text": f"a {REDS[n % 6]} square", "weight": 1.0}]
        return {"captions.json": canonical(said)}

    return tiny.dataset(folder, members)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line")
    (folder / "tiny.json").write_text(json.dumps(ARCHITECTURE))
    inputs = {"images": tiny.images(folder / "images"), "captions": captions(folder / "captions")}
    return {"folder": folder, "inputs": inputs}


def stage(line: dict[str, Any], **fields: Any) -> TrainClip:
    settings: dict[str, Any] = {
        "images": "images",
        "captions": "captions",
        "model": OpenClip(architecture=str(line["folder"] / "tiny.json")),
        "images_seen": 48,
        "batch": 12,
        "optimization": OPTIMIZATION,
        "checkpoint_seconds": None,
    }
    return TrainClip(**{**settings, **fields})


def test_learns_which_belong_together_and_open_clip_opens_it(line: dict[str, Any], tmp_path: Path) -> None:
    import open_clip as library

    open_clip: Any = library

    session = tiny.session(tmp_path, line["inputs"])
    snapshot = tiny.run(stage(line, images_seen=1200, flips=False, samples_every=1200), session)
    curve = [values["validation_auc"] for _, values in snapshot.record["curve"]]
    assert curve[-1] > 0.8
    assert snapshot.record["curve"][-1][1]["validation_chance_r1"] == pytest.approx(1 / 6)
    assert {event["kind"] for event in session.events} == {"progress", "metrics", "picture"}

    path = str(snapshot.local())
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{path}")
    images = [_picture(n) for n in range(3)]
    with torch.inference_mode():
        truth = model.eval().encode_image(torch.stack([preprocess(i) for i in images]), normalize=True)
        said = model.encode_text(open_clip.get_tokenizer(f"local-dir:{path}")(["a", "b c"]), normalize=True)
    np.testing.assert_allclose(OpenClipImages(path=path).build().encode(images), truth, atol=1e-3)
    ours = OpenClipTexts(path=path).build().encode(["a", "b c"])
    np.testing.assert_allclose(np.stack([one.pooled for one in ours]), said, atol=1e-3)

    inputs = {**line["inputs"], "model": snapshot}
    report = tiny.session(tmp_path, inputs, output="report")
    evaluate = EvaluateClip(images="images", captions="captions", model="clip", split="validation")
    found = evaluate.run(report)
    assert found["count"] == 6
    assert found["measures"]["auc"]["value"] == pytest.approx(curve[-1], abs=0.02)
    with pytest.raises(ValueError, match="test split has 0"):
        EvaluateClip(images="images", captions="captions", model="clip").run(report)

    # Trained on from there: its temperature stays its own.
    further = stage(line, model=OpenClip(path=path, frozen="image"), images_seen=12, loss="sigmoid")
    again = tiny.run(further, tiny.session(tmp_path, line["inputs"], output="again", checkpoints="other"))
    before, after = (s.tensors("open_clip_model.safetensors") for s in (snapshot, again))
    assert torch.equal(before["visual.proj"], after["visual.proj"])
    assert not torch.equal(before["text.text_projection"], after["text.text_projection"])
    assert after["logit_bias"] == pytest.approx(-10.0, abs=0.1)


def _picture(n: int) -> Any:
    from PIL import Image

    return Image.fromarray(tiny.picture(n))


def test_stopped_and_continued_is_the_unbroken_one(line: dict[str, Any], tmp_path: Path) -> None:
    inputs = line["inputs"]
    whole = tiny.run(stage(line), tiny.session(tmp_path, inputs, output="a", checkpoints="one"))
    tiny.run(stage(line, images_seen=24), tiny.session(tmp_path, inputs, output="b", checkpoints="two"))
    session = tiny.session(tmp_path, inputs, output="c", checkpoints="two")
    continued = tiny.run(stage(line), session)
    assert [e["text"] for e in session.events if e["kind"] == "note"] == ["Continues from 24 images."]
    assert continued.record["files"] == whole.record["files"]


def test_what_cannot_be_trained_is_said(line: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no other pair"):
        stage(line, batch=1)
    with pytest.raises(ValueError, match="`architecture`"):
        OpenClip()
    with pytest.raises(ValueError, match="not a file of JSON"):
        OpenClip(architecture=str(tmp_path / "none.json")).external()
    (tmp_path / "half.json").write_text('{"embed_dim": 8}')
    with pytest.raises(ValueError, match="vision_cfg"):
        OpenClip(architecture=str(tmp_path / "half.json")).external()
    session = tiny.session(tmp_path, line["inputs"])
    with pytest.raises(ValueError, match="knows no 'ViT-Z'"):
        tiny.run(stage(line, model=OpenClip(architecture="ViT-Z")), session)
    captioner = {**ARCHITECTURE, "multimodal_cfg": {}}
    (tmp_path / "coca.json").write_text(json.dumps(captioner))
    with pytest.raises(ValueError, match="no captioning model"):
        tiny.run(stage(line, model=OpenClip(architecture=str(tmp_path / "coca.json"))), session)


def test_an_autoencoder_is_no_clip(line: dict[str, Any], tmp_path: Path) -> None:
    inputs = {**line["inputs"], "model": tiny.autoencoder(tmp_path / "autoencoder")}
    evaluate = EvaluateClip(images="images", captions="captions", model="clip", split="validation")
    with pytest.raises(ValueError, match="is no CLIP"):
        evaluate.run(tiny.session(tmp_path, inputs))
