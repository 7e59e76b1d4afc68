"""Text encoders of the transformers library, from a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipelines.embedders.embedding import (
    TextEmbedding,
    device_at_hand,
    encode_padded,
    mean_pool,
    settings_digest,
)
from pipelines.embedders.folder import folder_digest, local_folder

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Any encoder that `AutoModel` reads: BERT and its kin, CLIP's text half, the encoder half of T5."""

    kind: Literal["transformers"] = "transformers"
    path: str = field(metadata={"execution": True})
    """Folder with config.json, tokenizer and safetensors; its contents, not its place, decide the result."""
    max_tokens: int = 128
    """Longer captions are cut."""

    def identity(self) -> str:
        return settings_digest("transformers", folder_digest(self.path, _PARTS), self.max_tokens)

    def build(self, *, micro_batch: int = 16) -> TransformerEmbedder:
        return TransformerEmbedder(self, micro_batch)


class TransformerEmbedder:
    """Token states are the last hidden states, the pooled vector their normalised mean."""

    def __init__(self, config: Transformer, micro_batch: int) -> None:
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

        folder = local_folder(config.path, ("config.json",))
        self.identity = config.identity()
        self._micro_batch = micro_batch
        # An encoder and decoder in one (T5) has a class of its own for its first half.
        settings = AutoConfig.from_pretrained(folder, local_files_only=True)
        auto = AutoModelForTextEncoding if settings.is_encoder_decoder else AutoModel
        model = auto.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        self._model = model.eval().to(device_at_hand())
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.width = self.pooled_width = int(self._model.config.hidden_size)
        self._longest = min(
            config.max_tokens, getattr(settings, "max_position_embeddings", config.max_tokens)
        )

    def encode(self, texts: Sequence[str]) -> list[TextEmbedding]:
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._longest)["input_ids"]
        return encode_padded(
            tokens,
            self._forward,
            longest=self._longest,
            micro_batch=self._micro_batch,
            pad=self._tokenizer.pad_token_id or 0,
        )

    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            return states, mean_pool(states, mask)
