from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines import weights
from pipelines.embedders import MiniLM, Transformer


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


def test_the_encoder_half_of_t5(tmp_path: Path) -> None:
    from transformers import BertTokenizerFast, T5Config, T5Model

    settings = T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    T5Model(settings).save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "fox"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    (found,) = Transformer(path=str(tmp_path)).build(micro_batch=2).encode(["a red fox"])
    assert found.states.shape == (5, 8)
    assert np.linalg.norm(found.pooled.astype(float)) == pytest.approx(1, abs=1e-2)


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
