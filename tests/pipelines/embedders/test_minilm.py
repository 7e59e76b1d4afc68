from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from pipelines import embedders, weights
from pipelines.embedders.minilm import MiniLM, MiniLMEmbedder

CAPTIONS = [
    "a 3D emoji of a red fox",
    "!",
    "a 3D emoji of person walking facing right, medium-dark skin tone, in a park",
    "a fox " * 25,
    "a 3D emoji of a cat",
    "naïve café 狐",
    "",
]


@pytest.fixture(scope="module")
def embedder() -> MiniLMEmbedder:
    return MiniLM().build(micro_batch=4)


def test_agrees_with_transformers(embedder: MiniLMEmbedder) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = weights.packaged("minilm")
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for caption, found in zip(CAPTIONS, embedder.encode(CAPTIONS), strict=True):
        ids = tokenizer(caption, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            states = model(**ids).last_hidden_state[0]
        assert found.states.shape == states.shape
        np.testing.assert_allclose(found.states, states, atol=3e-3)
        pooled = torch.nn.functional.normalize(states.mean(0), dim=0)
        np.testing.assert_allclose(found.pooled, pooled, atol=1e-3)


def test_meaning_decides_the_distance(embedder: MiniLMEmbedder) -> None:
    fox, other, clock = (
        e.pooled.astype(float) for e in embedder.encode(["a red fox", "a wild fox", "ten o'clock"])
    )
    assert fox @ other > fox @ clock + 0.2


@pytest.mark.parametrize("threads", [1, 2])
def test_company_changes_no_bit(embedder: MiniLMEmbedder, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = embedder.encode(CAPTIONS)
        apart = [embedder.encode([caption])[0] for caption in CAPTIONS]
        backwards = embedder.encode(CAPTIONS[::-1] + ["another"] * 5)[: len(CAPTIONS)][::-1]
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(together, apart, backwards, strict=True):
        assert a.states.tobytes() == b.states.tobytes() == c.states.tobytes()
        assert a.pooled.tobytes() == b.pooled.tobytes() == c.pooled.tobytes()


def test_long_captions_are_cut_to_max_tokens() -> None:
    (found,) = MiniLM(max_tokens=10).build().encode(["a fox " * 25])
    assert found.states.shape == (10, 384)
    with pytest.raises(ValueError, match="2 to 512"):
        MiniLM(max_tokens=1000)


def test_nothing_to_embed(embedder: MiniLMEmbedder) -> None:
    assert embedder.encode([]) == []


def test_a_record_gives_the_same_encoder_or_refuses(embedder: MiniLMEmbedder) -> None:
    record = {
        "kind": "minilm",
        "max_tokens": 128,
        "digest": embedder.identity,
        "width": 384,
        "micro_batch": 4,
    }
    (found,) = embedders.load_text(record).encode(["a red fox"])
    assert found.states.tobytes() == embedder.encode(["a red fox"])[0].states.tobytes()
    with pytest.raises(ValueError, match="another one"):
        embedders.load_text({**record, "digest": "0" * 64})
    with pytest.raises(ValueError, match="minilm, transformers, open_clip"):
        embedders.text({"kind": "word2vec"})


def test_configs_load_without_torch_and_the_encoder_without_transformers() -> None:
    code = (
        "import sys; from pipelines import embedders\n"
        "config = embedders.text({'kind': 'minilm'}); config.identity()\n"
        "assert not {'torch', 'numpy', 'transformers', 'PIL'} & set(sys.modules)\n"
        "config.build().encode(['a red fox'])\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
