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
CHUNK = 1024
"""Texts that are tokenised at once, in a thread, while the network is busy with those before."""


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """One text: fp16, padding left out."""

    states: np.ndarray
    """[tokens, width]: the encoder's last states, special tokens among them."""
    pooled: np.ndarray
    """[width of the pooled vector], of length 1 unless it is a model's own."""
    retried: bool = False
    """Whether it was made in fp32 because the chosen precision gave infinities."""
    parts: tuple[np.ndarray, ...] = ()
    """The token states of each encoder, where there are several."""


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


Forward = Callable[[Any, Any], tuple[Any, Any]]
"""int64 ids and bool mask [rows, length] on the device -> token states [rows, length, width], pooled vectors
[rows, width]."""


def encode_texts(
    texts: Sequence[Any],
    tokenize: Callable[[list[Any]], Sequence[Sequence[int]]],
    forward: Forward,
    *,
    longest: int,
    micro_batch: int,
    pad: int = 0,
    retry: Forward | None = None,
) -> list[TextEmbedding]:
    """Embeds texts, each in a call of `micro_batch` rows that are padded to the same length.

    Args:
        longest: tokens, at most, that `tokenize` makes of a text; it makes one at least.
        retry: the same in fp32, for the texts of which `forward` gives a number that fp16 does not hold.
    """
    from pipelines.training.prefetch import prefetched

    found: dict[int, TextEmbedding] = {}
    waiting: dict[int, list[tuple[int, Sequence[int]]]] = {}
    call = _Calls(forward, retry, micro_batch, pad)
    starts = range(0, len(texts), CHUNK)
    chunks = [list(texts[start : start + CHUNK]) for start in starts]
    made = map(tokenize, chunks) if len(chunks) < 2 else prefetched(chunks, tokenize, ahead=1)
    for start, tokens in zip(starts, made, strict=True):
        for length, positions in by_length([len(t) for t in tokens], longest).items():
            rows = waiting.setdefault(length, [])
            rows += [(start + n, tokens[n]) for n in positions]
            whole = len(rows) - len(rows) % micro_batch
            for first in range(0, whole, micro_batch):
                found |= call(rows[first : first + micro_batch], length)
            del rows[:whole]
    for length, rows in waiting.items():
        if rows:
            found |= call(rows, length)
    found |= call.last()
    return [found[position] for position in range(len(texts))]


def encode_padded(
    tokens: Sequence[Sequence[int]], forward: Forward, *, longest: int, micro_batch: int, pad: int = 0
) -> list[TextEmbedding]:
    """`encode_texts` of texts that are tokenised already."""
    return encode_texts(tokens, list, forward, longest=longest, micro_batch=micro_batch, pad=pad)


class _Calls:
    """Forward calls of which the results are taken one call later, so that a GPU need not wait for them."""

    def __init__(self, forward: Forward, retry: Forward | None, micro_batch: int, pad: int) -> None:
        self._forward, self._retry = forward, retry
        self._micro_batch, self._pad = micro_batch, pad
        self._device = device_at_hand()
        self._pending: Callable[[], dict[int, TextEmbedding]] = dict

    def __call__(self, rows: Sequence[tuple[int, Sequence[int]]], length: int) -> dict[int, TextEmbedding]:
        """Starts on the rows (position and tokens); gives what became of those before."""
        import numpy as np
        import torch

        filled = [*rows, *([rows[-1]] * (self._micro_batch - len(rows)))]
        lengths = np.array([len(tokens) for _, tokens in filled])
        mask = np.arange(length) < lengths[:, None]
        ids = np.full(mask.shape, self._pad, np.int64)
        ids[mask] = np.concatenate([np.asarray(tokens, np.int64) for _, tokens in filled])
        given = torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)
        got = _narrow(*self._forward(*given), given[1])
        fetch = [fetched(tensor) for tensor in got]
        before, self._pending = self._pending, lambda: self._taken(rows, given, fetch)
        return before()

    def last(self) -> dict[int, TextEmbedding]:
        return self._pending()

    def _taken(
        self, rows: Sequence[tuple[int, Sequence[int]]], given: tuple[Any, Any], fetch: Sequence[Any]
    ) -> dict[int, TextEmbedding]:
        states, pooled, whole = (get() for get in fetch)
        retried = set[int]()
        if self._retry is not None and not whole[: len(rows)].all():
            again, vectors, _ = (t.cpu().numpy() for t in _narrow(*self._retry(*given), given[1]))
            states, pooled = states.copy(), pooled.copy()
            # Only these, so that what else is in the call changes nothing.
            for row in range(len(rows)):
                if not whole[row]:
                    states[row], pooled[row] = again[row], vectors[row]
                    retried.add(row)
        return {
            position: TextEmbedding(states[row, : len(tokens)].copy(), pooled[row].copy(), row in retried)
            for row, (position, tokens) in enumerate(rows)
        }


def _narrow(states: Any, pooled: Any, mask: Any) -> tuple[Any, Any, Any]:
    """As fp16, and which rows are finite in it."""
    import torch

    states, pooled = states.half(), pooled.half()
    finite = (torch.isfinite(states).all(-1) | ~mask).all(-1) & torch.isfinite(pooled).all(-1)
    return states, pooled, finite


def fetched(tensor: Any) -> Callable[[], np.ndarray]:
    """Starts a copy to the CPU's memory; the call waits for this tensor, and not for what came after it."""
    import torch

    if tensor.device.type != "cuda":
        array = tensor.cpu().numpy()
        return lambda: array
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def get() -> np.ndarray:
        done.synchronize()
        return host.numpy()

    return get


def mean_pool(states: Any, mask: Any) -> Any:
    """Mean over real tokens, scaled to length 1 (Reimers and Gurevych, 2019, section 3)."""
    import torch.nn.functional as F

    weight = mask.unsqueeze(-1).to(states.dtype)
    return F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)


def settings_digest(*parts: str | int) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
