"""all-MiniLM-L6-v2 from its package: a BERT encoder, run in torch alone.

transformers gives the same numbers, but takes three seconds to import: most of the wait for a first picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines import weights
from pipelines.embedders.embedding import (
    TextEmbedding,
    device_at_hand,
    encode_texts,
    mean_pool,
    settings_digest,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MiniLM:
    """384 wide, 6 layers, Apache-2.0; no download beyond its package."""

    kind: Literal["minilm"] = "minilm"
    max_tokens: int = 128
    """Longer captions are cut; 512 at most."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_tokens <= 512:
            raise ValueError(f"max_tokens is {self.max_tokens}; MiniLM takes 2 to 512.")

    def identity(self) -> str:
        """Of weights and settings; needs neither the package nor torch."""
        return settings_digest("minilm", weights.digest("minilm"), self.max_tokens)

    def build(self, *, micro_batch: int = 16) -> MiniLMEmbedder:
        return MiniLMEmbedder(self, micro_batch)


class MiniLMEmbedder:
    """Devlin et al., 2019, as sentence-transformers trained it; pooled = normalised mean."""

    width = 384
    pooled_width = 384

    def __init__(self, config: MiniLM, micro_batch: int) -> None:
        from tokenizers import Tokenizer

        self.identity = config.identity()
        self.longest, self._micro_batch = config.max_tokens, micro_batch
        self._tokenizer = Tokenizer.from_file(str(weights.packaged("minilm") / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(config.max_tokens)
        device = device_at_hand()
        self._state = {name: tensor.to(device) for name, tensor in weights.load("minilm").items()}

    def encode(self, texts: Sequence[str]) -> list[TextEmbedding]:
        return encode_texts(
            texts, self._tokenize, self._forward, longest=self.longest, micro_batch=self._micro_batch
        )

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        with torch.inference_mode():
            states = bert(self._state, ids, mask, heads=12)
            return states, mean_pool(states, mask)


def bert(state: dict[str, Tensor], ids: Tensor, mask: Tensor, *, heads: int) -> Tensor:
    """Last hidden states [b, n, width] of a BERT encoder with the weights `state`, for a single segment."""
    import torch.nn.functional as F

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def normalise(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.LayerNorm.weight"]
        return F.layer_norm(x, weight.shape, weight, state[f"{name}.LayerNorm.bias"], eps=1e-12)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    position = state["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = F.embedding(ids, state["embeddings.word_embeddings.weight"]) + position
    x = normalise(x + state["embeddings.token_type_embeddings.weight"][0], "embeddings")
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    for layer in range(layers):
        name = f"encoder.layer.{layer}."
        q, k, v = (split(linear(x, f"{name}attention.self.{part}")) for part in ("query", "key", "value"))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        attended = linear(attended.transpose(1, 2).flatten(2), f"{name}attention.output.dense")
        x = normalise(x + attended, f"{name}attention.output")
        hidden = linear(F.gelu(linear(x, f"{name}intermediate.dense")), f"{name}output.dense")
        x = normalise(x + hidden, f"{name}output")
    return x
