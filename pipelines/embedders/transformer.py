"""Text encoders of the transformers library, from a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.embedders.embedding import (
    TextEmbedding,
    device_at_hand,
    encode_texts,
    mean_pool,
    settings_digest,
)
from pipelines.embedders.folder import folder_digest, local_folder

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("*.safetensors", "*.json", "*.txt", "*.model")
_ENCODERS = ("t5", "mt5", "umt5")
"""Of an encoder and a decoder, the first half of which is wanted."""
_CLIP = ("clip", "clip_text_model")

Precision = Literal["float32", "bfloat16", "float16"]


def _added(default: Any) -> Any:
    # As `pipelines.stage.added`, which these configs load without: at its default it is in no fingerprint.
    return field(default=default, metadata={"added": default})


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Any text encoder that transformers reads: BERT and its kin, CLIP's text half, the encoder half of T5,
    mT5 and umT5, and decoders (Qwen, Gemma, Llama), whose tokens see those before them alone."""

    kind: Literal["transformers"] = "transformers"
    path: str = field(metadata={"execution": True})
    """Folder with config.json, tokenizer and safetensors (in shards or not); its contents, not its place,
    decide the result."""
    tokenizer: str = field(default="", metadata={"execution": True})
    """Folder of the tokenizer, where it is another one, as in the folders of diffusers."""
    max_tokens: int = 128
    """Longer captions are cut."""
    layer: int = _added(-1)
    """Whose hidden states are taken: -1 the last, behind the final norm; -2 the one before it."""
    final_norm: bool = _added(False)
    """Whether the final norm is applied to an earlier layer's states too: Stable Diffusion 1 and 2 do, SDXL
    does not."""
    pooled: Literal["mean", "last", "own"] = _added("mean")
    """Mean of the last states, or the last token's state, scaled to length 1; or the model's own vector as it
    is: a CLIP's projected one where it has a projection, else the one before it; a BERT's pooler."""
    padded: bool = _added(False)
    """Fills every caption up to `max_tokens` with the tokenizer's own padding, which a network then sees as
    tokens: pretrained denoisers were trained so."""
    precision: Precision = _added("float32")
    """Of weights and arithmetic. What overflows in it is made again in float32, and counted; but transformers
    itself cuts T5's numbers to what float16 holds, so take bfloat16 for T5."""

    def __post_init__(self) -> None:
        if self.layer >= 0:
            raise ValueError(f"layer is {self.layer}; layers are counted from the end: -1 is the last.")

    def identity(self) -> str:
        parts = [self.layer, self.final_norm, self.pooled, self.precision]
        words = parts if parts != [-1, False, "mean", "float32"] else []
        if self.padded:
            words = [*words, "padded"]
        if self.tokenizer:
            files = sorted(f for part in _PARTS for f in local_path(self.tokenizer).glob(part))
            words = [*words, *(settings_digest(f.name, f.read_bytes().hex()) for f in files)]
        return settings_digest(
            "transformers", folder_digest(self.path, _PARTS), self.max_tokens, *map(str, words)
        )

    def build(self, *, micro_batch: int = 16) -> TransformerEmbedder:
        return TransformerEmbedder(self, micro_batch)


class TransformerEmbedder:
    """Hidden states and a pooled vector, as the config says."""

    def __init__(self, config: Transformer, micro_batch: int) -> None:
        from transformers import AutoTokenizer

        self.config = config
        self.identity = config.identity()
        self._micro_batch = micro_batch
        self._model = _load(config, config.precision)
        self._wide: Any = self._model if config.precision == "float32" else None
        tokens = local_path(config.tokenizer) if config.tokenizer else local_folder(config.path)
        self._tokenizer = AutoTokenizer.from_pretrained(tokens, local_files_only=True)
        settings = self._model.config
        self.width = self.pooled_width = int(settings.hidden_size)
        if config.pooled == "own" and type(self._model).__name__ == "CLIPTextModelWithProjection":
            self.pooled_width = int(settings.projection_dim)
        self.longest = min(
            config.max_tokens, getattr(settings, "max_position_embeddings", None) or config.max_tokens
        )

    def encode(self, texts: Sequence[str]) -> list[TextEmbedding]:
        return encode_texts(
            texts,
            self._tokenize,
            self._forward,
            longest=self.longest,
            micro_batch=self._micro_batch,
            pad=self._tokenizer.pad_token_id or 0,
            retry=None if self.config.precision == "float32" else self._again,
        )

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        fill = "max_length" if self.config.padded else False
        tokens = self._tokenizer(texts, truncation=True, max_length=self.longest, padding=fill)["input_ids"]
        # Decoders' tokenizers may make nothing of an empty text, and a network needs something to see.
        known = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id)
        start = next((token for token in known if token is not None), 0)
        return [found or [start] for found in tokens]

    def _forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self._states(self._model, ids, mask)

    def _again(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self._wide is None:
            self._wide = _load(self.config, "float32")
        return self._states(self._wide, ids, mask)

    def _states(self, model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        import torch
        import torch.nn.functional as F

        inner = self.config.layer != -1
        with torch.inference_mode():
            # Padding lies behind: a decoder's tokens never see it, an encoder's mask hides it.
            given: dict[str, Any] = {"output_hidden_states": True} if inner else {}
            if not getattr(model.config, "is_encoder_decoder", False) and hasattr(model.config, "use_cache"):
                given["use_cache"] = False
            if model.config.model_type in (*_ENCODERS, *_CLIP):
                given.pop("use_cache", None)
            out = model(input_ids=ids, attention_mask=mask.long(), **given)
            states = last = out.last_hidden_state
            if inner:
                states = out.hidden_states[self.config.layer]
                states = _final_norm(model)(states) if self.config.final_norm else states
            if self.config.pooled == "own":
                vector = getattr(out, "text_embeds", None)
                pooled = out.pooler_output if vector is None else vector
            elif self.config.pooled == "last":
                ends = mask.sum(1) - 1
                pooled = F.normalize(last[torch.arange(len(last), device=last.device), ends].float(), dim=-1)
            else:
                pooled = mean_pool(last.float(), mask)
            return states, pooled


def local_path(path: str) -> Path:
    """A folder without weights. `ValueError` if it is none."""
    from pipelines.places import at_hand

    folder = at_hand(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; put the tokenizer's files there.")
    return folder


def _load(config: Transformer, precision: Precision) -> Any:
    """The model in evaluation mode on the device at hand.

    Raises:
        ValueError: the folder lacks some of its weights, or it has no pooled vector of its own.
    """
    import torch
    import transformers

    folder = local_folder(config.path, ("config.json",))
    settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kind: Any = transformers.AutoModel
    if settings.model_type in _ENCODERS or settings.is_encoder_decoder:
        kind = transformers.AutoModelForTextEncoding
    elif settings.model_type in _CLIP:
        projected = settings.model_type == "clip" or any(
            "WithProjection" in name for name in settings.architectures or ()
        )
        kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    model, said = kind.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=getattr(torch, precision),
        output_loading_info=True,
    )
    own = config.pooled == "own"
    # What is missing would be drawn at random; a pooler that nobody asks for may be.
    missing = sorted(name for name in said["missing_keys"] if own or "pooler" not in name)
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of the encoder's weights, such as {missing[0]}.")
    if own and settings.model_type not in _CLIP and not hasattr(model, "pooler"):
        raise ValueError(f"{folder} has no pooled vector of its own: set `pooled: mean` or `last`.")
    return model.eval().requires_grad_(False).to(device_at_hand())


def _final_norm(model: Any) -> Any:
    """`ValueError` for an encoder that has none, as BERT."""
    for inside in (model, getattr(model, "text_model", None), getattr(model, "encoder", None)):
        for name in ("final_layer_norm", "norm"):
            found = getattr(inside, name, None)
            if found is not None:
                return found
    raise ValueError(f"{type(model).__name__} has no final norm: leave `final_norm` out.")
