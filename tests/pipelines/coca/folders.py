"""Tiny CoCa folders with random weights, far enough from zero that what is seen decides what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = 40
VISION: dict[str, Any] = {
    "image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "output_tokens": True,
    "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "context_length": 12, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2, "embed_cls": True,
    "output_tokens": True, "hf_tokenizer_name": "own",
}  # fmt: skip
DECODER: dict[str, Any] = {
    "context_length": 12, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2, "attn_pooler_heads": 2,
}  # fmt: skip
TINY: dict[str, Any] = {
    "embed_dim": 32, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT, "multimodal_cfg": DECODER,
}  # fmt: skip


def model(config: dict[str, Any] = TINY, *, seed: int = 0, scale: float = 0.25) -> Any:
    import open_clip
    import torch

    torch.manual_seed(seed)
    built = open_clip.CoCa(**{name: value for name, value in config.items() if name != "custom_text"})
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, scale)
    return built.eval()


def save(folder: Path, config: dict[str, Any] = TINY, *, seed: int = 0, tokenizer: bool = True) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.contiguous() for name, t in model(config, seed=seed).state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    settings = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Words of one letter and of two: pieces are whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<pad>", "<start>", "<end>", "<unknown>", *letters, *(2 * letter for letter in letters)][:WORDS]
    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "bos_token": "<start>",
        "eos_token": "<end>", "unk_token": "<unknown>", "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
