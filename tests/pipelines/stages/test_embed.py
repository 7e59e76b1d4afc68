from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.arrays import from_npy
from pipelines.dataset import Dataset
from pipelines.embedders import EfficientNetImages, MiniLM, caption_digest, load_text
from pipelines.stages.embed import Embed
from tests.pipelines import tiny
from tests.pipelines.stages.making import column, made


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.captions(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def embedded(captions: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    stage = Embed(captions="captions", micro_batch=4)
    return made(stage, {"captions": captions, "images": None}, tmp_path_factory.mktemp("embed"))


def test_each_caption_once_a_shard_and_found_from_its_samples(captions: Dataset, embedded: Dataset) -> None:
    texts = {key: json.loads(data) for key, data in column(captions, "captions.json").items()}
    for shard in embedded.shards:
        index = embedded.index(shard.name)
        used = {c["text"] for key in index.keys for c in texts[key]}
        names = {f"{caption_digest(t)}.{part}.npy" for t in used for part in ("text", "pooled")}
        assert set(index.shared) == names
    listed = json.loads(column(embedded, "text.json")["k003"])
    assert listed == [{"digest": caption_digest(c["text"]), "weight": c["weight"]} for c in texts["k003"]]


def test_vectors_are_the_encoders_whatever_else_is_in_the_shard(embedded: Dataset) -> None:
    encoder = MiniLM().build(micro_batch=4)
    words = "a drawing of thing 3"
    (alone,) = encoder.encode([words])
    states = {embedded.read_shared(s.name, f"{caption_digest(words)}.text.npy") for s in embedded.shards}
    assert len(states) == 1
    found = from_npy(states.pop())
    assert found.dtype == np.float16
    assert found.shape == (7, 384)  # five words between start and end: no padding is kept
    assert found.tobytes() == alone.states.tobytes()
    pooled = from_npy(embedded.read_shared("00000", f"{caption_digest(words)}.pooled.npy"))
    assert pooled.tobytes() == alone.pooled.tobytes()


def test_a_few_rows_come_out_as_all_of_them_did(captions: Dataset, embedded: Dataset) -> None:
    stage, inputs = Embed(captions="captions", micro_batch=4), {"captions": captions, "images": None}
    shard = stage.plan(inputs)[0]
    (alone,) = stage.open(inputs)(shard, stage.rows(inputs, shard)[4:5])
    assert set(stage.shared(alone.members)) == set(alone.shared)
    for name, data in alone.shared.items():
        assert embedded.read_shared(shard.name, name) == data


def test_the_manifest_tells_how_to_embed_a_prompt(embedded: Dataset) -> None:
    record = embedded.manifest["statistics"]["text"]
    assert {
        k: record[k] for k in ("kind", "width", "pooled_width", "captions", "longest", "micro_batch")
    } == {
        "kind": "minilm",
        "width": 384,
        "pooled_width": 384,
        "captions": 15,
        "longest": 10,
        "micro_batch": 4,
    }
    words = "a drawing of thing 1"
    (prompt,) = load_text(record).encode([words])
    stored = embedded.read_shared("00000", f"{caption_digest(words)}.text.npy")
    assert from_npy(stored).tobytes() == prompt.states.tobytes()


def test_images_beside_captions(captions: Dataset, tmp_path: Path) -> None:
    images = tiny.images(tmp_path / "images")
    stage = Embed(captions="captions", images="images", image=EfficientNetImages(), micro_batch=4)
    assert stage.columns("images") == ("image",)
    inputs = {"captions": captions, "images": images}
    embedded = made(stage, inputs, tmp_path / "embed")
    vectors = {key: from_npy(data) for key, data in column(embedded, "image.npy").items()}
    assert len(vectors) == len(images)
    assert vectors["k000"].shape == (1280,)
    # Pictures repeat with period 504: all differ here, and each has its own vector.
    assert len({v.tobytes() for v in vectors.values()}) == len(vectors)
    assert embedded.manifest["statistics"]["image"]["kind"] == "efficientnet_lite0"


def test_images_and_their_encoder_come_together() -> None:
    with pytest.raises(ValueError, match="no `images`"):
        Embed(captions="captions", image=EfficientNetImages())
    with pytest.raises(ValueError, match="no `image` encoder"):
        Embed(captions="captions", images="images")


def test_the_encoder_is_in_the_fingerprint_and_its_place_is_not() -> None:
    assert Embed(captions="a").external() != Embed(captions="a", text=MiniLM(max_tokens=9)).external()
    from pipelines.embedders import Transformer

    assert "path" not in Embed(captions="a", text=Transformer(path="/x")).meaning()["text"]


def test_golden(embedded: Dataset) -> None:
    """When this fails, the stage's output has changed: raise `Embed.version`, then write the new values.

    Vectors differ in their last bits from processor to processor, so a few are compared by value.
    """
    assert (Embed.version, embedded.digest(("text.json",))[:16]) == (1, "32786d75a641ea7c")
    digest = caption_digest("a drawing of thing 0")
    states = from_npy(embedded.read_shared("00000", f"{digest}.text.npy"))
    pooled = from_npy(embedded.read_shared("00000", f"{digest}.pooled.npy"))
    # As transformers gives them for this caption.
    assert states[3, :3].tolist() == pytest.approx([-0.3617, 0.9089, -0.4224], abs=3e-3)
    assert pooled[:3].tolist() == pytest.approx([-0.0081, 0.0927, -0.0448], abs=1e-3)
