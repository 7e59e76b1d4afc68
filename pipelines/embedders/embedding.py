"""What encoders give, and how they are called so that company never changes a result.

A float result depends on the shape of the call that it came from. So texts are padded to one of a few fixed
lengths, each by its own length alone, and every call is padded to the same number of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
"""Tokens that texts are padded to: the first that is enough."""


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """One text: fp16, padding left out."""

    states: np.ndarray
    """[tokens, width]: the encoder's last states, special tokens among them."""
    pooled: np.ndarray
    """[width of the pooled vector], of length 1."""


class TextEmbedder(Protocol):
    identity: str
    """Digest over weights, tokenizer and settings."""
    width: int
    """Of the token states."""
    pooled_width: int

    def encode(self, texts: Sequence[str]) -> list[TextEmbedding]: ...


class ImageEmbedder(Protocol):
    identity: str
    width: int

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """fp16 [images, width], each row of length 1."""
        ...


def caption_digest(text: str) -> str:
    """Names a caption's members within a shard: 20 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def device_at_hand() -> Any:
    """Torch's device for a stage's networks: the GPU that the worker was given, if any."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batches(items: Sequence[Any], size: int) -> Iterator[tuple[list[Any], int]]:
    """Runs of exactly `size` items and how many of them count; the last item fills the last run."""
    for start in range(0, len(items), size):
        run = list(items[start : start + size])
        yield run + run[-1:] * (size - len(run)), len(run)


def by_length(lengths: Sequence[int], longest: int) -> dict[int, list[int]]:
    """Padded length -> the texts (positions) of that length; `longest` ends the list of `LENGTHS`."""
    allowed = [*(n for n in LENGTHS if n < longest), longest]
    groups: dict[int, list[int]] = {}
    for position, length in enumerate(lengths):
        groups.setdefault(next(n for n in allowed if n >= length), []).append(position)
    return groups


def encode_padded(
    tokens: Sequence[Sequence[int]],
    forward: Callable[[Any, Any], tuple[Any, Any]],
    *,
    longest: int,
    micro_batch: int,
    pad: int = 0,
) -> list[TextEmbedding]:
    """Embeds tokenized texts; `forward(ids, mask)` takes int64 and bool [rows, length] tensors on the
    device and gives token states [rows, length, width] and pooled vectors [rows, width]."""
    import torch

    device = device_at_hand()
    found: dict[int, TextEmbedding] = {}
    for length, positions in by_length([len(t) for t in tokens], longest).items():
        for rows, count in batches(positions, micro_batch):
            ids = torch.full((micro_batch, length), pad, dtype=torch.long)
            mask = torch.zeros(micro_batch, length, dtype=torch.bool)
            for row, position in enumerate(rows):
                text = torch.tensor(tokens[position], dtype=torch.long)
                ids[row, : len(text)], mask[row, : len(text)] = text, True
            states, pooled = forward(ids.to(device), mask.to(device))
            states, pooled = states.half().cpu().numpy(), pooled.half().cpu().numpy()
            for row, position in enumerate(rows[:count]):
                found[position] = TextEmbedding(
                    states[row, : len(tokens[position])].copy(), pooled[row].copy()
                )
    return [found[position] for position in range(len(tokens))]


def mean_pool(states: Any, mask: Any) -> Any:
    """Mean over real tokens, scaled to length 1 (Reimers and Gurevych, 2019, section 3)."""
    import torch.nn.functional as F

    weight = mask.unsqueeze(-1).to(states.dtype)
    return F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)


def settings_digest(*parts: str | int) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
