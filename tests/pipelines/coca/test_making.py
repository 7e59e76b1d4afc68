from __future__ import annotations

import json
import math
import random

import pytest
import torch

from pipelines.coca.config import SmallCoCa
from pipelines.coca.making import begun, files_of, word_pieces
from pipelines.training.tasks.captioner import caption_loss

NAMES = ["red fox", "Red Car", "family: man, woman", "o'clock", "keycap: #", "naïve café", "red fox"] * 3
SMALL = SmallCoCa(image_size=16, patch=8, width=32, context=12, pieces=310)


def test_equal_captions_in_any_order_give_equal_bytes() -> None:
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    assert word_pieces(NAMES, 320) == word_pieces(shuffled, 320)
    assert word_pieces(NAMES, 320)[1] <= 320


def test_words_come_back_as_they_were_in_lower_case() -> None:
    _, _, words = begun(SMALL, files_of(SMALL, NAMES))
    # The last has pieces that no caption had: single bytes.
    for text in ("red fox", "man, woman", "o'clock", "café", "#", "狐"):
        tokens = words.tokens(f"  {text.upper()} ").tolist()
        assert len(tokens) == words.context == 12
        assert tokens[0] == words.start
        assert words.text(tokens[1 : tokens.index(words.end)]) == text.lower()
    cut = words.tokens("red fox " * 9).tolist()
    assert (cut[0], cut[-1]) == (words.start, words.end)


def test_the_untrained_model_knows_nothing_yet() -> None:
    """Its projection onto words, which open_clip leaves as it is, has begun: the loss is that of chance."""
    torch.manual_seed(0)
    model, _, words = begun(SMALL, files_of(SMALL, NAMES))
    count = model.text_decoder.text_projection.shape[1]
    tokens = torch.stack([torch.from_numpy(words.tokens(name)) for name in NAMES[:6]])
    with torch.no_grad():
        logits = model(torch.randn(6, 3, 16, 16), tokens)["logits"]
    assert logits.std() > 0.3
    loss = caption_loss(logits, tokens, pad=words.pad)
    assert loss.mean().item() == pytest.approx(math.log(count), abs=1.5)


def test_the_loss_is_open_clips_for_captions_of_one_length() -> None:
    from open_clip.loss import CoCaLoss

    torch.manual_seed(0)
    logits, tokens = (
        torch.randn(3, 5, 9),
        torch.tensor([[1, 4, 5, 2, 0, 0], [1, 7, 3, 2, 0, 0], [1, 8, 8, 2, 0, 0]]),
    )
    truth = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0)(
        torch.randn(3, 4), torch.randn(3, 4), logits, tokens[:, 1:], 1.0
    )[1]
    torch.testing.assert_close(caption_loss(logits, tokens, pad=0).mean(), truth)


def test_the_config_says_what_was_asked() -> None:
    settings = json.loads(files_of(SMALL, NAMES)["open_clip_config.json"])["model_cfg"]
    assert settings["vision_cfg"]["image_size"] == 16
    assert settings["text_cfg"]["vocab_size"] == settings["multimodal_cfg"]["vocab_size"] <= 310
    assert settings["embed_dim"] == settings["multimodal_cfg"]["width"] == 32
