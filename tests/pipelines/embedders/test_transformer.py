from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import weights
from pipelines.embedders import MiniLM, Transformer
from tests.pipelines.embedders import folders


def test_a_local_folder_gives_what_the_package_gives() -> None:
    folder = str(weights.packaged("minilm"))
    captions = ["a red fox", "a 3D emoji of a person walking facing right in a park at night"]
    given = Transformer(path=folder).build(micro_batch=2)
    assert given.width == 384
    for a, b in zip(given.encode(captions), MiniLM().build(micro_batch=2).encode(captions), strict=True):
        np.testing.assert_allclose(a.states, b.states, atol=3e-3)
        np.testing.assert_allclose(a.pooled, b.pooled, atol=1e-3)
    alone = given.encode(captions[1:])[0]
    assert alone.states.tobytes() == given.encode(captions)[1].states.tobytes()


def test_identity_is_the_contents_not_the_place(tmp_path: Path) -> None:
    for name, text in (("a", "{}"), ("b", "{}"), ("c", '{"x": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "notes.md").write_text(name)
    a, b, c = (Transformer(path=str(tmp_path / name)).identity() for name in "abc")
    assert a == b
    assert a != c
    assert a != Transformer(path=str(tmp_path / "a"), max_tokens=5).identity()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        Transformer(path=str(tmp_path / "none")).identity()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="pickles are not read"):
        Transformer(path=str(tmp_path)).identity()


CAPTIONS = ["a red fox in the snow", "a fox", ""]


def _reference(model: Any, text: str) -> Any:
    """What the library gives for one caption, alone and without padding."""
    ids = [2, *(folders.WORDS.index(word) for word in text.split()), 3]
    model = getattr(model, "encoder", model) if type(model).__name__ == "T5Model" else model
    model = getattr(model, "model", model) if type(model).__name__.endswith("CausalLM") else model
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), output_hidden_states=True)


@pytest.mark.parametrize(
    "kind",
    [
        "T5EncoderModel",
        "T5Model",
        "UMT5EncoderModel",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "BertModel",
        "Qwen2ForCausalLM",
        "GemmaForCausalLM",
    ],
)
def test_every_kind_gives_what_the_library_gives_a_caption_alone(kind: str, tmp_path: Path) -> None:
    model = folders.model(tmp_path, kind)
    # By itself transformers gives Qwen's folder its own tokenizer, whatever the files say.
    folders.tokenizer(tmp_path / "tokenizer")
    for layer in (-1, -2):
        config = Transformer(path=str(tmp_path), tokenizer=str(tmp_path / "tokenizer"), layer=layer)
        for text, found in zip(CAPTIONS, config.build(micro_batch=2).encode(CAPTIONS), strict=True):
            truth = _reference(model, text)
            states = truth.last_hidden_state if layer == -1 else truth.hidden_states[-2]
            np.testing.assert_allclose(found.states, states[0], rtol=2e-3, atol=2e-3)
            mean = truth.last_hidden_state[0].mean(0)
            np.testing.assert_allclose(found.pooled, mean / mean.norm(), atol=2e-3)


def test_an_earlier_layer_behind_the_final_norm_and_the_models_own_vector(tmp_path: Path) -> None:
    model = folders.model(tmp_path / "clip", "CLIPTextModelWithProjection")
    truth = _reference(model, CAPTIONS[0])
    config = Transformer(path=str(tmp_path / "clip"), layer=-2, final_norm=True, pooled="own")
    embedder = config.build(micro_batch=2)
    found = embedder.encode(CAPTIONS)[0]
    with torch.inference_mode():
        normed = model.text_model.final_layer_norm(truth.hidden_states[-2])[0]
    np.testing.assert_allclose(found.states, normed, atol=2e-3)
    np.testing.assert_allclose(found.pooled, truth.text_embeds[0], atol=2e-3)
    assert (embedder.width, embedder.pooled_width) == (16, 12)

    folders.model(tmp_path / "bert", "BertModel")
    with pytest.raises(ValueError, match="no final norm"):
        Transformer(path=str(tmp_path / "bert"), layer=-2, final_norm=True).build().encode(["a"])
    folders.model(tmp_path / "t5", "T5EncoderModel")
    with pytest.raises(ValueError, match="no pooled vector of its own"):
        Transformer(path=str(tmp_path / "t5"), pooled="own").build()
    with pytest.raises(ValueError, match="counted from the end"):
        Transformer(path="x", layer=2)


def test_a_decoder_pools_its_last_token_and_sees_something_of_an_empty_text(tmp_path: Path) -> None:
    model = folders.model(tmp_path, "Qwen2ForCausalLM")
    folders.tokenizer(tmp_path / "words")
    words = str(tmp_path / "words")
    found = Transformer(path=str(tmp_path), tokenizer=words, pooled="last").build(micro_batch=2)
    found = found.encode(CAPTIONS)
    last = _reference(model, CAPTIONS[0]).last_hidden_state[0, -1]
    np.testing.assert_allclose(found[0].pooled, last / last.norm(), atol=2e-3)

    # As a tokenizer of Qwen's does.
    embedder = Transformer(path=str(tmp_path), tokenizer=words).build(micro_batch=2)
    nothing = {"__call__": lambda self, texts, **_: {"input_ids": [[] for _ in texts]}}
    embedder._tokenizer.__class__ = type("Silent", (type(embedder._tokenizer),), nothing)
    (empty,) = embedder.encode([""])
    assert empty.states.shape == (1, 16)
    assert np.isfinite(empty.pooled).all()


def test_weights_in_several_files_are_one_model(tmp_path: Path) -> None:
    model = folders.model(tmp_path / "whole", "Qwen2ForCausalLM")
    model.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    folders.tokenizer(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole, parts = (
        Transformer(path=str(tmp_path / name)).build(micro_batch=2).encode(CAPTIONS)
        for name in ("whole", "parts")
    )
    assert [e.states.tobytes() for e in whole] == [e.states.tobytes() for e in parts]


def test_weights_that_are_not_there_are_not_drawn_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folders.model(tmp_path, "T5EncoderModel")
    state = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in state if "block.1" in name)
    save_file({k: v for k, v in state.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the encoder's weights"):
        Transformer(path=str(tmp_path)).build()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_narrower_precision_is_near(precision: Any, tmp_path: Path) -> None:
    folders.model(tmp_path, "BertModel")
    wide = Transformer(path=str(tmp_path)).build(micro_batch=2).encode(CAPTIONS)
    narrow = Transformer(path=str(tmp_path), precision=precision).build(micro_batch=2).encode(CAPTIONS)
    for a, b in zip(wide, narrow, strict=True):
        np.testing.assert_allclose(a.states, b.states, atol=0.05)
        assert not b.retried


def test_what_overflows_is_made_again_in_float32_and_the_rest_is_left(tmp_path: Path) -> None:
    model = folders.model(tmp_path, "BertModel")
    with torch.no_grad():
        # One word is larger than fp16 can carry through the first layer's norm.
        model.embeddings.word_embeddings.weight[folders.WORDS.index("snow")] = 1e5
    model.save_pretrained(tmp_path)
    config: dict[str, Any] = {"path": str(tmp_path)}
    wide = Transformer(**config).build(micro_batch=4).encode(CAPTIONS)
    narrow = Transformer(**config, precision="float16").build(micro_batch=4)
    found = narrow.encode(CAPTIONS)
    assert [e.retried for e in found] == [True, False, False]
    assert found[0].states.tobytes() == wide[0].states.tobytes()
    assert np.isfinite(found[0].states).all()
    (alone,) = narrow.encode(CAPTIONS[1:2])
    assert alone.states.tobytes() == found[1].states.tobytes()


def test_defaults_leave_the_identity_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert Transformer(path=str(tmp_path)).identity()[:16] == "b667108aa4c75ef2"
    changes: list[dict[str, Any]] = [{"layer": -2}, {"precision": "bfloat16"}, {"pooled": "last"}]
    found = {Transformer(path=str(tmp_path), **change).identity() for change in changes}
    assert len(found | {Transformer(path=str(tmp_path)).identity()}) == 4
