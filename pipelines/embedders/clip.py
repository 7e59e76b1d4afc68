"""Text and image halves of open_clip models, from a local checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipelines.embedders.embedding import (
    TextEmbedding,
    batches,
    device_at_hand,
    encode_texts,
    settings_digest,
)
from pipelines.embedders.folder import folder_digest

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

_PARTS = ("*.safetensors", "*.json", "*.txt", "*.model", "*/*/config.json")


@dataclass(frozen=True, kw_only=True)
class OpenClipTexts:
    """Captions by the text half of any open_clip architecture."""

    kind: Literal["open_clip"] = "open_clip"
    path: str = field(default="", metadata={"execution": True})
    """Folder (`local-dir:` before it may stay) with open_clip_config.json, or a model config as JSON, and one
    safetensors file; its contents, not its place, decide the result. Empty: the stage's `clip`."""

    def identity(self) -> str:
        _named(self.path)
        return settings_digest("open_clip text", folder_digest(self.path, _PARTS))

    def build(self, *, micro_batch: int = 16) -> OpenClipTextEmbedder:
        return OpenClipTextEmbedder(self, micro_batch)


@dataclass(frozen=True, kw_only=True)
class OpenClipImages:
    """Images by the image half of any open_clip architecture."""

    kind: Literal["open_clip"] = "open_clip"
    path: str = field(default="", metadata={"execution": True})
    """As for the text half."""

    def identity(self) -> str:
        _named(self.path)
        return settings_digest("open_clip image", folder_digest(self.path, _PARTS))

    def build(self, *, micro_batch: int = 16) -> OpenClipImageEmbedder:
        return OpenClipImageEmbedder(self, micro_batch)


class OpenClipTextEmbedder:
    """Token states are the text transformer's, up to the text's end; pooled is the shared space's vector."""

    def __init__(self, config: OpenClipTexts, micro_batch: int) -> None:
        from pipelines.clip import folder

        self.identity = config.identity()
        self._micro_batch = micro_batch
        self._device = device_at_hand()
        # The text half as a module of its own, whose token states can be asked for.
        self._text = folder.load_half(config.path, "text").to(self._device)
        self._text.output_tokens = True
        self._tokenizer = folder.load_tokenizer(config.path)
        tokenizer = getattr(self._tokenizer, "tokenizer", None)
        self._pad = int(getattr(tokenizer, "pad_token_id", None) or getattr(self._text, "pad_id", 0) or 0)
        self.longest = int(getattr(self._tokenizer, "context_length", None) or 77)
        # A tower of the transformers library masks what is padding: it is given no more of it than need be.
        self._masks = hasattr(self._text, "pooler")
        first = self.encode([""])[0]
        self.width, self.pooled_width = first.states.shape[-1], first.pooled.shape[-1]

    def encode(self, texts: Sequence[str]) -> list[TextEmbedding]:
        if self._masks:
            return encode_texts(
                texts,
                self._tokenize,
                lambda ids, mask: self._forward(ids),
                longest=self.longest,
                micro_batch=self._micro_batch,
                pad=self._pad,
            )
        found = []
        for run, count in batches(list(texts), self._micro_batch):
            tokens = self._tokenizer(run)
            lengths = self._lengths(tokens)
            states, pooled = (part.half().cpu().numpy() for part in self._forward(tokens.to(self._device)))
            found += [
                TextEmbedding(states[row, : lengths[row]].copy(), pooled[row].copy()) for row in range(count)
            ]
        return found

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        tokens = self._tokenizer(texts)
        ends = self._lengths(tokens)
        return [row[:end] for row, end in zip(tokens.tolist(), ends, strict=True)]

    def _lengths(self, tokens: Tensor) -> list[int]:
        """By the last token that is no padding: CLIP pads with 0, which is also the exclamation mark."""
        import torch

        places = torch.arange(1, tokens.shape[1] + 1)
        return ((tokens != self._pad) * places).amax(1).clamp(min=1).tolist()

    def _forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Token states and vectors of length 1."""
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            pooled, states = self._text(tokens)
            return states, F.normalize(pooled, dim=-1)


class OpenClipImageEmbedder:
    def __init__(self, config: OpenClipImages, micro_batch: int) -> None:
        from pipelines.clip import folder

        self.identity = config.identity()
        self._micro_batch = micro_batch
        self._device = device_at_hand()
        self._visual = folder.load_half(config.path, "visual").to(self._device)
        size = getattr(self._visual, "image_size", 224)
        self._single, self._batch = folder.batched(folder.load_preprocess(config.path, size))
        self.width = self.encode([_blank()]).shape[-1]

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        import numpy as np
        import torch
        import torch.nn.functional as F

        found = []
        # Pillow resizes without holding the interpreter: threads make a batch while the network has another.
        with ThreadPoolExecutor(_threads()) as pool:
            pixels = pool.map(self._single, images)
            for count in _counts(len(images), self._micro_batch):
                batch = [next(pixels) for _ in range(count)]
                batch += batch[-1:] * (self._micro_batch - count)
                with torch.inference_mode():
                    # As uint8 to the device: a quarter of the bytes, and the arithmetic is done there.
                    vectors = self._visual(self._batch(torch.stack(batch).to(self._device)))
                    vectors = vectors[0] if isinstance(vectors, tuple) else vectors
                    found.append(F.normalize(vectors, dim=-1)[:count].half().cpu().numpy())
        return np.concatenate(found) if found else np.empty((0, self.width), np.float16)


def _counts(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _threads() -> int:
    """As many as torch may use here: a worker's share of the machine."""
    import torch

    return max(1, torch.get_num_threads())


def _named(path: str) -> None:
    if not path:
        raise ValueError("An open_clip encoder has no weights: name a `path`, or give the stage a `clip`.")


def _blank() -> Image:
    from PIL import Image

    return Image.new("RGB", (64, 64))
