from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from diffusion.config import OptimizationConfig
from pipelines.captioners import CoCa, Subject
from pipelines.captioners.decoding import Beams, Greedy, Sampled
from pipelines.coca.config import NamedCoCa, SmallCoCa, TrainedCoCa
from pipelines.dataset import Dataset
from pipelines.shards import canonical
from pipelines.stages.caption import Caption
from pipelines.stages.train_captioner import TrainCaptioner
from tests.pipelines import tiny
from tests.pipelines.coca import folders

NETWORK = SmallCoCa(
    image_size=16, patch=8, width=32, image_layers=1, text_layers=1, decoder_layers=1, queries=4, context=8,
    pieces=300,
)  # fmt: skip
COLOURS = ["red", "green", "blue", "grey"]


def colour(n: int) -> str:
    return COLOURS[n % 4]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Images of one colour each, which their captions name."""
    import io

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line")

    def image(key: str, n: int) -> dict[str, bytes]:
        buffer = io.BytesIO()
        pixels = np.full((16, 16, 3), 30 if n % 4 < 3 else 140, np.uint8)
        if n % 4 < 3:
            pixels[..., n % 4] = 200 + n
        Image.fromarray(pixels).save(buffer, "PNG")
        return {"png": buffer.getvalue()}

    def captions(key: str, n: int) -> dict[str, bytes]:
        wordings = [
            {"text": f"a {colour(n)} square", "weight": 3.0, "source": "t"},
            {"text": f"{colour(n)}", "weight": 1.0, "source": "t"},
        ]
        return {"captions.json": canonical(wordings), "txt": b"x"}

    return {
        "images": tiny.dataset(folder / "images", image),
        "captions": tiny.dataset(folder / "captions", captions),
    }


def stage(**fields: Any) -> TrainCaptioner:
    settings: dict[str, Any] = {
        "images": "images",
        "captions": "captions",
        "network": NETWORK,
        "images_seen": 64,
        "batch": 8,
        "optimization": OptimizationConfig(lr=3e-3, warmup=64, cooldown=0),
        "checkpoint_seconds": None,
        "max_tokens": 7,
    }
    return TrainCaptioner(**{**settings, **fields})


@pytest.mark.slow
def test_learns_to_name_what_it_sees_and_open_clip_loads_it(
    inputs: dict[str, Dataset], tmp_path: Path
) -> None:
    import open_clip

    session = tiny.session(tmp_path, inputs)
    snapshot = tiny.run(stage(images_seen=800, validate_every=200), session)

    losses = [values["validation_loss"] for _, values in snapshot.record["curve"]]
    # Which of two wordings it is to be cannot be known: 0.56 nats of 7 tokens, at best.
    assert losses[-1] < min(0.2, losses[0])
    assert snapshot.record["curve"][-1][1]["validation_word_f1"] > 0.95
    assert {event["kind"] for event in session.events} == {"progress", "metrics", "picture"}

    folder = snapshot.local()
    assert {f.name for f in folder.iterdir()} >= set(snapshot.record["files"])
    captioner = CoCa(path=str(folder), max_tokens=7).build()
    keys = [f"k{n:03d}" for n in range(24, 30)]
    images = [r.members["image"] for r in inputs["images"].read("00002", keys, ("image",))]
    answers = captioner.answers([Subject(fields={}, image=image) for image in images])
    said = [answer.captions[0].text for answer in answers]
    assert all(colour(n) in text for n, text in zip(range(24, 30), said, strict=True))

    # The contrastive half was trained too: each colour's text is nearest to its images.
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    import io

    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.open(io.BytesIO(image))) for image in images])
        cosines = model.eval().encode_image(pixels) @ model.encode_text(tokenizer(COLOURS)).T
    assert cosines.argmax(1).tolist() == [n % 4 for n in range(24, 30)]


def test_stopped_and_continued_is_the_unbroken_one(inputs: dict[str, Dataset], tmp_path: Path) -> None:
    whole = tiny.run(stage(), tiny.session(tmp_path, inputs, output="a", checkpoints="one"))
    tiny.run(stage(images_seen=24), tiny.session(tmp_path, inputs, output="b", checkpoints="two"))
    session = tiny.session(tmp_path, inputs, output="c", checkpoints="two")

    continued = tiny.run(stage(), session)

    assert [e["text"] for e in session.events if e["kind"] == "note"] == ["Continues from 24 images."]
    assert continued.record["files"] == whole.record["files"]


def test_begins_with_another_captioner(inputs: dict[str, Dataset], tmp_path: Path) -> None:
    first = tiny.run(stage(), tiny.session(tmp_path, inputs, output="a", checkpoints="one"))
    still = OptimizationConfig(lr=0.0, warmup=0, cooldown=0)
    given = {**inputs, "initial": first}
    again = stage(initial="first", network=TrainedCoCa(), optimization=still, images_seen=8)
    second = tiny.run(again, tiny.session(tmp_path, given, output="b", checkpoints="two"))
    before, after = (one.tensors("open_clip_model.safetensors") for one in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tokenizer = ("tokenizer.json", "tokenizer_config.json")
    assert all(first.read(name) == second.read(name) for name in tokenizer)
    assert json.loads(first.read("open_clip_config.json")) == json.loads(second.read("open_clip_config.json"))


def test_a_config_as_json_with_clips_own_words(inputs: dict[str, Dataset], tmp_path: Path) -> None:
    words = {"vocab_size": 49408, "context_length": 8}
    text = {k: v for k, v in folders.TEXT.items() if k != "hf_tokenizer_name"}
    config = {
        **folders.TINY,
        "text_cfg": {**text, **words},
        "multimodal_cfg": {**folders.DECODER, **words},
    }
    (tmp_path / "mine.json").write_text(json.dumps(config))
    network = NamedCoCa(file=str(tmp_path / "mine.json"))
    snapshot = tiny.run(stage(network=network, images_seen=8), tiny.session(tmp_path, inputs))
    assert set(snapshot.record["files"]) == {"open_clip_config.json", "open_clip_model.safetensors"}
    CoCa(path=str(snapshot.local()), max_tokens=3).build()


def test_what_cannot_be_trained_is_said_in_a_line(inputs: dict[str, Dataset], tmp_path: Path) -> None:
    for network, word in (
        (NamedCoCa(name="ViT-B-32"), "ViT-B-32 is no CoCa"),
        (NamedCoCa(name="coca_nothing"), "coca_nothing is no CoCa"),
        (NamedCoCa(name="coca_roberta-ViT-B-32"), "transformers library"),
    ):
        with pytest.raises(ValueError, match=word) as caught:
            tiny.run(stage(network=network), tiny.session(tmp_path, inputs))
        assert "\n" not in str(caught.value)
    for fields, word in (
        ({"caption_weight": 0.0}, "caption_weight"),
        ({"shift": 0.5}, "shift is 0.5"),
        ({"network": TrainedCoCa()}, "begins with `initial`"),
        ({"initial": "other"}, "begins with `initial`"),
    ):
        with pytest.raises(ValueError, match=word):
            stage(**fields)
    with pytest.raises(ValueError, match="no multiple"):
        SmallCoCa(image_size=20, patch=8)


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(inputs: dict[str, Dataset], tmp_path: Path) -> None:
    """The contrastive loss is among all pairs of the batch, whichever rank holds them."""
    from tests.pipelines.training.test_trainer import gang

    few = stage(images_seen=32, optimization=OptimizationConfig(lr=1e-2, warmup=0))
    alone = tiny.run(few, tiny.session(tmp_path, inputs, output="alone", checkpoints="alone"))
    gang(2, tmp_path / "two", inputs, few)
    still = stage(images_seen=8, optimization=OptimizationConfig(lr=0.0, warmup=0))
    begun = tiny.run(still, tiny.session(tmp_path, inputs, output="begun", checkpoints="begun"))

    def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensors[name].float().flatten() for name in sorted(tensors)])

    one, start = (flat(s.tensors("open_clip_model.safetensors")) for s in (alone, begun))
    two = flat(load((tmp_path / "two" / "output" / "open_clip_model.safetensors").read_bytes()))
    assert (one - start).abs().mean() > 5e-3
    # AdamW takes steps of full length where a gradient is nothing but rounding.
    assert (two - one).abs().mean() < 0.05 * (one - start).abs().mean()


def test_its_captions_are_the_same_from_any_number_of_workers(
    inputs: dict[str, Dataset], tmp_path: Path
) -> None:
    """Shards are made by any worker, in any order."""
    model = tiny.run(stage(), tiny.session(tmp_path, inputs))
    line = {"images": inputs["images"], "model": model}
    for decoding in (Greedy(), Beams(width=2), Sampled(temperature=1.5)):
        captioner = CoCa(decoding=decoding, max_tokens=6, micro_batch=4)
        captions = Caption(images="images", model="model", captioners=(captioner,))
        plans = captions.plan(line)

        def of(worker: list[int], captions: Caption = captions, plans: Any = plans) -> dict[int, Any]:
            make = captions.open(line)
            found = {}
            for n in worker:
                rows = captions.rows(line, plans[n])
                # In pieces too: a killed worker's rows are taken up where they lie.
                cut = len(rows) // 3 if len(worker) < 3 else 0
                found[n] = [*make(plans[n], rows[:cut]), *make(plans[n], rows[cut:])]
            return found

        one = of([0, 1, 2])
        assert {**of([2, 1]), **of([0])} == one
        assert {**of([1]), **of([2]), **of([0])} == one
        assert all(sample.members["captions.json"] for samples in one.values() for sample in samples)


def test_a_captioner_is_named_where_it_is_needed(inputs: dict[str, Dataset], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without weights"):
        Caption(images="images", captioners=(CoCa(),))
    with pytest.raises(ValueError, match="no captioner reads"):
        Caption(images="images", model="model")
    other = tiny.autoencoder(tmp_path / "autoencoder")
    caption = Caption(images="images", model="model", captioners=(CoCa(),))
    with pytest.raises(ValueError, match="which does not write"):
        caption.open({"images": inputs["images"], "model": other})
