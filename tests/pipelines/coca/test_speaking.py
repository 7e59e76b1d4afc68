from __future__ import annotations

from typing import Any

import pytest
import torch

from pipelines.coca.search import Rules, follow, likeliest
from pipelines.coca.speaking import Cached, Recomputed, cacheable, speaker
from tests.pipelines.coca import folders

START, END = 1, 2
VARIANTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "no class token": {"text_cfg": {**folders.TEXT, "embed_cls": False}},
    "layer scale": {
        "text_cfg": {**folders.TEXT, "ls_init_value": 0.5},
        "multimodal_cfg": {**folders.DECODER, "ls_init_value": 0.5},
    },
    "no attentional pooling": {"vision_cfg": {**folders.VISION, "attentional_pool": False}},
    "quick gelu": {"quick_gelu": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_kept_says_what_is_computed_again(variant: str, beams: int) -> None:
    model = folders.model({**folders.TINY, **VARIANTS[variant]})
    assert cacheable(model)
    torch.manual_seed(1)
    with torch.inference_mode():
        _, seen = model._encode_image(torch.randn(2, 3, 16, 16))
        kept, again = Cached(model, seen, beams), Recomputed(model, seen, beams)
        tokens = torch.full((2 * beams,), START)
        for step in range(11):
            logits, truth = kept.next(tokens), again.next(tokens)
            torch.testing.assert_close(logits, truth, atol=2e-5, rtol=2e-5)
            # The image tells, not only the words.
            assert (truth[0] - truth[beams]).abs().max() > 1e-2
            tokens = torch.randint(3, folders.WORDS, (2 * beams,))
            chosen = torch.randint(beams, (2, beams)) + torch.tensor([[0], [beams]])
            kept.take(chosen.flatten())
            again.take(chosen.flatten())
            assert step < 11


def test_blocks_of_another_kind_are_computed_again() -> None:
    model = folders.model({**folders.TINY, "text_cfg": {**folders.TEXT, "qk_norm": True}})
    assert not cacheable(model)
    with torch.inference_mode():
        _, seen = model._encode_image(torch.randn(2, 3, 16, 16))
        assert isinstance(speaker(model, seen), Recomputed)


def test_greedy_is_open_clips_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its top-k of 1, which runs where transformers lends it what was removed in 4.57."""
    import transformers
    from open_clip import coca_model

    for name in (
        "LogitsProcessorList", "TopKLogitsWarper", "RepetitionPenaltyLogitsProcessor",
        "MinLengthLogitsProcessor", "MaxLengthCriteria", "StoppingCriteriaList",
    ):  # fmt: skip
        monkeypatch.setattr(coca_model, name, getattr(transformers, name), raising=False)
    monkeypatch.setattr(coca_model, "_has_transformers", True)
    warpers = {"top_k": transformers.TopKLogitsWarper}
    monkeypatch.setattr(coca_model, "GENERATION_TYPES", warpers)
    model = folders.model(seed=3)
    torch.manual_seed(2)
    images = torch.randn(8, 3, 16, 16)
    truth = model.generate(
        images, generation_type="top_k", top_k=1, seq_len=10, min_seq_len=3, sot_token_id=START,
        eos_token_id=END, pad_token_id=0, repetition_penalty=1.3,
    )  # fmt: skip
    # Its lengths count the start, and its last token is an end whatever the model says.
    rules = Rules(start=START, end=END, min_tokens=2, max_tokens=8, repetition_penalty=1.3)
    with torch.inference_mode():
        _, seen = model._encode_image(images)
        found = follow(speaker(model, seen), 8, rules, likeliest, torch.device("cpu"))
    said = [tuple(t for t in row[1:] if t not in (END, 0)) for row in truth.tolist()]
    assert [tuple(t for t in one.tokens if t != 0) for one in found] == said
    assert len({one.tokens for one in found}) > 2
