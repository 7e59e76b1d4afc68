"""What an embed stage keeps of captions, and that training sees the same whatever it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from diffusion.config import GuidanceConfig
from pipelines.arrays import from_npy
from pipelines.dataset import Dataset
from pipelines.embedders import (
    MiniLM,
    OpenClipImages,
    OpenClipTexts,
    Several,
    Transformer,
    caption_digest,
    load_text,
)
from pipelines.embedders.storing import empty
from pipelines.models import Generator
from pipelines.runner.fingerprint import digest
from pipelines.stages.embed import Embed
from pipelines.stages.train import Train
from pipelines.training.tasks.denoiser import DenoiserTask
from tests.pipelines import tiny
from tests.pipelines.embedders import folders
from tests.pipelines.stages.making import column, made

BOTH = Several(encoders=(MiniLM(max_tokens=6), MiniLM(max_tokens=9)), join="tokens")
CHANGES: dict[str, dict[str, Any]] = {
    "cached": {"empty": True},
    "online": {"store": "online", "empty": True},
    "pooled": {"store": "pooled", "empty": True},
    "joined": {"text": BOTH},
    "joined online": {"text": BOTH, "store": "online"},
}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.captions(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def kept(captions: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    return {
        name: made(
            Embed(captions="captions", micro_batch=4, **change),
            {"captions": captions},
            tmp_path_factory.mktemp(name.replace(" ", "-")),
        )
        for name, change in CHANGES.items()
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.line(tmp_path_factory.mktemp("line"))


def losses(inputs: dict[str, Any], text: Dataset, **changes: Any) -> torch.Tensor:
    """Of the first step's samples, by a network that has not learned, but sees its conditions."""
    torch.manual_seed(0)
    stage = tiny.train(drop_text=0.3, **changes)
    task = DenoiserTask(stage, {**inputs, "text": text}, device=torch.device("cpu"), workers=1)
    with torch.no_grad():
        for parameter in task.module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    share = task.share(np.arange(8), np.arange(8) * 3)
    return task.losses(task.module, share)


@pytest.mark.parametrize(
    ("a", "b", "null"),
    [
        ("cached", "online", "learned"),
        ("cached", "online", "encoded"),
        ("joined", "joined online", "learned"),
    ],
)
def test_training_on_words_is_training_on_their_vectors_to_the_bit(
    inputs: dict[str, Any], kept: dict[str, Dataset], a: str, b: str, null: str
) -> None:
    first, second = (losses(inputs, kept[name], null=null) for name in (a, b))
    assert torch.equal(first, second)
    # The captions count at all: they are others in a dataset that keeps less of them.
    assert not torch.equal(first, losses(inputs, kept["pooled"]))


def test_an_encoded_null_is_another_than_a_learned_one(
    inputs: dict[str, Any], kept: dict[str, Dataset]
) -> None:
    a, b = (losses(inputs, kept["cached"], null=null) for null in ("learned", "encoded"))
    same = (a == b).tolist()
    assert any(same)  # samples that keep their caption
    assert not all(same)


def test_words_take_no_vectors_and_pooled_ones_no_states(kept: dict[str, Dataset]) -> None:
    assert kept["online"].columns == ["text.json"]
    assert kept["pooled"].columns == ["pooled.npy", "text.json"]
    assert kept["joined"].columns == ["pooled.npy", "text.0.npy", "text.1.npy", "text.json"]
    listed = json.loads(column(kept["online"], "text.json")["k003"])
    assert [c["text"] for c in listed] == [c["text"] for c in tiny.wordings(3)]
    record = kept["pooled"].manifest["statistics"]["text"]
    assert (record["width"], record["pooled_width"], record["longest"]) == (384, 384, 1)
    (prompt,) = load_text(record).encode(["a drawing of thing 1"])
    stored = kept["pooled"].read_shared("00000", f"{caption_digest('a drawing of thing 1')}.pooled.npy")
    assert prompt.states.tobytes() == prompt.pooled.tobytes() == from_npy(stored).tobytes()


def test_each_encoders_states_are_kept_once_without_padding(kept: dict[str, Dataset]) -> None:
    words = "a drawing of thing 3 in colour 1"
    found = [
        from_npy(kept["joined"].read_shared("00000", f"{caption_digest(words)}.text.{n}.npy")) for n in (0, 1)
    ]
    assert [len(states) for states in found] == [6, 9]
    record = kept["joined"].manifest["statistics"]["text"]
    assert (record["longest"], record["width"]) == (15, 384)
    (prompt,) = load_text(record).encode([words])
    assert prompt.states.tobytes() == b"".join(states.tobytes() for states in found)


def test_the_empty_caption_is_in_the_manifest_once(kept: dict[str, Dataset]) -> None:
    (truth,) = MiniLM().build(micro_batch=4).encode([""])
    for name in ("cached", "online"):
        found = empty(kept[name].manifest["statistics"]["text"])
        assert found.states.tobytes() == truth.states.tobytes()
        assert found.pooled.tobytes() == truth.pooled.tobytes()
    assert not any(caption_digest("") in name for name in kept["cached"].index("00000").shared)
    plain = Embed(captions="captions")
    assert Embed(captions="captions", empty=True).work() == plain.work()  # no vector is made again for it


def test_what_training_reads_says_which_encoder_it_was(captions: Dataset, tmp_path: Path) -> None:
    """A training's fingerprint has the digests of these columns and nothing else of the dataset."""
    columns = ("text.json", "text.npy", "pooled.npy")
    found = set()
    for n, text in enumerate((MiniLM(), MiniLM(max_tokens=9), BOTH)):
        stage = Embed(captions="captions", text=text, store="online", micro_batch=4)
        found.add(made(stage, {"captions": captions}, tmp_path / str(n)).digest(columns))
    assert len(found) == 3


@pytest.mark.parametrize("name", ["online", "joined"])
def test_a_model_draws_as_it_was_trained(
    name: str, inputs: dict[str, Any], kept: dict[str, Dataset], tmp_path: Path
) -> None:
    null = "encoded" if name == "online" else "learned"
    stage = tiny.train(images_seen=16, null=null, prompts=("thing 1",))
    snapshot = tiny.run(stage, tiny.session(tmp_path, {**inputs, "text": kept[name]}))
    model = Generator(snapshot, device="cpu")
    assert (model.model.nothing is None) == (null == "learned")
    images = model.generate(["a drawing of thing 1", "thing"], steps=1, guidance=3.0, micro_batch=2)
    assert len(images) == 2
    alone = model.generate(["thing"], indices=[1], steps=1, guidance=3.0, micro_batch=2)
    assert np.array_equal(np.asarray(alone[0]), np.asarray(images[1]))
    assert dataclasses.asdict(model.guidance) == dataclasses.asdict(GuidanceConfig())


def test_what_does_not_go_together_is_said(inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="keeps no empty caption"):
        tiny.train(null="encoded").run(tiny.session(Path("/nowhere"), inputs))
    with pytest.raises(ValueError, match="needs `text`"):
        tiny.train(null="encoded", text=None)
    with pytest.raises(ValueError, match="that no encoder uses"):
        Embed(captions="captions", clip="clip")
    with pytest.raises(ValueError, match="of one open_clip model"):
        Embed(captions="captions", similarity=True)


def test_what_was_embedded_and_trained_before_stays_so() -> None:
    """Digests of the meaning of stages as they were before anything but vectors of one encoder was kept."""
    stages: dict[str, Any] = {
        "664f308dd40a8fef": Embed(captions="a"),
        "6cf0b269238addd2": Embed(
            captions="a", text=OpenClipTexts(path="/x"), images="b", image=OpenClipImages(path="/x")
        ),
        "3c0ac051d2b2f10d": Embed(captions="a", text=Transformer(path="/x", max_tokens=77)),
        "c0992b53ac3c2636": Train(latents="l", autoencoder="v", text="t"),
    }
    for known, stage in stages.items():
        assert digest([stage.name(), stage.version, stage.meaning()])[:16] == known
    assert MiniLM().identity()[:16] == "96982b6858705fc1"


def test_what_overflows_is_counted_and_what_is_never_finite_is_a_reject(
    captions: Dataset, tmp_path: Path
) -> None:
    model = folders.model(tmp_path / "bert", "BertModel")
    found = {}
    for name, value, precision in (("half", 1e5, "float16"), ("single", 1e30, "float32")):
        with torch.no_grad():  # of a word in one of each sample's two captions
            model.embeddings.word_embeddings.weight[folders.WORDS.index("in")] = value
        model.save_pretrained(tmp_path / "bert")
        text = Transformer(path=str(tmp_path / "bert"), precision=cast(Any, precision))
        stage = Embed(captions="captions", text=text, micro_batch=4)
        found[name] = made(stage, {"captions": captions}, tmp_path / name)
    assert found["half"].manifest["statistics"]["text"]["retried"] == 30
    assert found["half"].manifest["notes"] == [
        "captions of 30 samples overflowed and were embedded once more in float32"
    ]
    assert found["single"].manifest["counts"]["reasons"] == {"not_finite": 30}
