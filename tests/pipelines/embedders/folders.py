"""Tiny random text encoders as folders, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "fox", "in", "the", "snow"]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2, "decoder_start_token_id": 0}
CLIP = {**SMALL, "projection_dim": 12, "max_position_embeddings": 20, "eos_token_id": 3, "bos_token_id": 2}
DECODER = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}


def tokenizer(folder: Path) -> None:
    import transformers

    kind: Any = getattr(transformers, "BertTokenizerFast")  # noqa: B009  # not in the library's own list
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    kind(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


def model(folder: Path, kind: str, *, seed: int = 0, scale: float = 1.0, **changes: Any) -> Any:
    """A model of `kind`, saved with a tokenizer of ten words; `scale` multiplies its matrices."""
    import transformers

    settings = {
        "T5EncoderModel": (transformers.T5Config, T5),
        "T5Model": (transformers.T5Config, T5),
        "UMT5EncoderModel": (transformers.UMT5Config, T5),
        "CLIPTextModel": (transformers.CLIPTextConfig, CLIP),
        "CLIPTextModelWithProjection": (transformers.CLIPTextConfig, CLIP),
        "BertModel": (transformers.BertConfig, SMALL),
        "Qwen2ForCausalLM": (transformers.Qwen2Config, DECODER),
        "GemmaForCausalLM": (transformers.GemmaConfig, DECODER),
    }
    config, fields = settings[kind]
    torch.manual_seed(seed)
    fields = {"vocab_size": len(WORDS), "pad_token_id": 0, **fields, **changes}
    made = getattr(transformers, kind)(config(**fields))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    made.eval().save_pretrained(folder)
    tokenizer(folder)
    return made
