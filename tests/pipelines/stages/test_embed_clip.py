"""Captions and images by the same open_clip model, whose weights a snapshot or a folder gives."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.storage import Storage
from pipelines.arrays import from_npy
from pipelines.dataset import Dataset, write_manifest
from pipelines.embedders import MiniLM, OpenClipImages, OpenClipTexts, Several, load_text
from pipelines.models import SnapshotFolder
from pipelines.scorers import Similarity
from pipelines.scorers.thresholds import Threshold
from pipelines.stages.embed import Embed
from pipelines.stages.filter import Filter
from pipelines.stages.score import Score
from tests.pipelines import tiny
from tests.pipelines.stages.making import column, made

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> SnapshotFolder:
    """A CLIP's as train_clip leaves it."""
    import open_clip
    from safetensors.torch import save

    torch.manual_seed(0)
    state = {name: tensor.contiguous() for name, tensor in open_clip.CLIP(**TINY).state_dict().items()}
    files = {
        "open_clip_model.safetensors": save(state),
        "open_clip_config.json": json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}).encode(),
    }
    storage = Storage.at(tmp_path_factory.mktemp("clip"))
    for name, data in files.items():
        storage.put_if_absent(name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_manifest(storage, {"snapshot": {"task": "clip", "files": digests}}, kind="snapshot")
    return SnapshotFolder.open(storage)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, snapshot: SnapshotFolder) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("line")
    return {
        "captions": tiny.captions(folder / "captions"),
        "images": tiny.images(folder / "images"),
        "clip": snapshot,
    }


GIVEN: dict[str, Any] = {"captions": "captions", "images": "images", "micro_batch": 4, "similarity": True}


@pytest.fixture(scope="module")
def embedded(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    stage = Embed(clip="clip", text=OpenClipTexts(), image=OpenClipImages(), **GIVEN)
    assert stage.external() == {}
    return made(stage, inputs, tmp_path_factory.mktemp("embed"))


def test_a_snapshots_weights_are_those_of_its_folder(
    inputs: dict[str, Any], embedded: Dataset, snapshot: SnapshotFolder, tmp_path: Path
) -> None:
    path = str(snapshot.local())
    stage = Embed(text=OpenClipTexts(path=path), image=OpenClipImages(path=path), **GIVEN)
    assert set(stage.external()) == {"text", "image"}
    named = made(stage, {**inputs, "clip": None}, tmp_path)
    assert named.digest() == embedded.digest()
    record = embedded.manifest["statistics"]["text"]
    assert (record["width"], record["pooled_width"]) == (16, 16)
    (prompt,) = load_text(record).encode(["a drawing of thing 1"])
    stored = column(embedded, "text.json")["k001"]
    digest = json.loads(stored)[0]["digest"]
    assert from_npy(embedded.read_shared("00000", f"{digest}.text.npy")).tobytes() == prompt.states.tobytes()


def test_the_similarity_is_the_scorers_and_a_filter_takes_it(
    inputs: dict[str, Any], embedded: Dataset, snapshot: SnapshotFolder, tmp_path: Path
) -> None:
    scorer = Similarity(path=str(snapshot.local()))
    stage = Score(images="images", captions="captions", scorers=(scorer,), micro_batch=4)
    truth = made(stage, {**inputs, "keep": None}, tmp_path / "score")
    found = column(embedded, "scores.json")
    assert found == column(truth, "scores.json")
    assert len({json.loads(data)["similarity"] for data in found.values()}) > 10
    said = embedded.manifest["statistics"]["scores"]
    assert said == truth.manifest["statistics"]["scores"]

    half = Filter(scores=("embed",), keep={"similarity": Threshold(top=0.5)}, splits=())
    gate = made(half, {"scores": (embedded,), "images": None}, tmp_path / "filter")
    assert gate.manifest["columns"]["keep"]["count"] == pytest.approx(15, abs=3)


def test_one_of_several_may_be_the_clips(inputs: dict[str, Any], tmp_path: Path) -> None:
    both = Several(encoders=(MiniLM(), OpenClipTexts()))
    stage = Embed(captions="captions", clip="clip", text=both, micro_batch=4)
    dataset = made(stage, {**inputs, "images": None}, tmp_path)
    record = dataset.manifest["statistics"]["text"]
    assert (record["width"], record["pooled_width"]) == (400, 16)
    assert load_text(record).encode(["a thing"])[0].states.shape[1] == 400


def test_what_is_lacking_is_said() -> None:
    with pytest.raises(ValueError, match="name a `path`, or a `clip`"):
        Embed(captions="captions", text=OpenClipTexts())
