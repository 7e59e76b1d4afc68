"""How captions' vectors lie in a dataset, and what a network sees of them.

A manifest's record of its texts says which encoder they are of and, as `store`, what is kept of them.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pipelines.arrays import from_npy, to_npy
from pipelines.embedders.embedding import TextEmbedder, TextEmbedding
from pipelines.embedders.several import joined

if TYPE_CHECKING:
    from pipelines.embedders import TextEmbedderConfig

Store = Literal["cached", "pooled", "online"]


def suffixes(config: TextEmbedderConfig, store: Store) -> tuple[str, ...]:
    """Of the members of one caption, behind its digest."""
    if store == "online":
        return ()
    if store == "pooled":
        return ("pooled.npy",)
    if config.kind == "several" and config.join != "last":
        return (*(f"text.{n}.npy" for n in range(len(config.encoders))), "pooled.npy")
    return ("text.npy", "pooled.npy")


def members(embedding: TextEmbedding, wanted: Sequence[str]) -> dict[str, bytes]:
    """The embedding as the members of these suffixes."""
    arrays = {"text.npy": embedding.states, "pooled.npy": embedding.pooled}
    arrays |= {f"text.{n}.npy": part for n, part in enumerate(embedding.parts)}
    return {suffix: to_npy(arrays[suffix]) for suffix in wanted}


def assembled(record: Mapping[str, Any], read: Callable[[str], bytes]) -> TextEmbedding:
    """What a network sees of a caption, from the members that `read` gives by suffix."""
    pooled = from_npy(read("pooled.npy"))
    if record.get("store") == "pooled":
        return alone(pooled)
    if record.get("kind") == "several" and record["join"] != "last":
        parts = [from_npy(read(f"text.{n}.npy")) for n in range(len(record["encoders"]))]
        return TextEmbedding(joined(parts, record["join"]), pooled)
    return TextEmbedding(from_npy(read("text.npy")), pooled)


def alone(pooled: Any) -> TextEmbedding:
    """The pooled vector as the only token."""
    return TextEmbedding(pooled[None], pooled)


class PooledOnly:
    """An encoder of which a network sees the pooled vector alone."""

    def __init__(self, encoder: TextEmbedder) -> None:
        self.identity, self.width = encoder.identity, encoder.pooled_width
        self.pooled_width, self._encoder = encoder.pooled_width, encoder

    def encode(self, texts: Sequence[str]) -> list[TextEmbedding]:
        return [replace(alone(e.pooled), retried=e.retried) for e in self._encoder.encode(texts)]


def kept_empty(embedding: TextEmbedding) -> dict[str, str]:
    """The empty caption's embedding as JSON, for a manifest."""
    arrays = {"text": embedding.states, "pooled": embedding.pooled}
    return {name: base64.b64encode(to_npy(array)).decode() for name, array in arrays.items()}


def empty(record: Mapping[str, Any]) -> TextEmbedding:
    """What the encoder makes of an empty caption. `ValueError` where the record does not hold it."""
    if "empty" not in record:
        raise ValueError("The dataset keeps no empty caption: set `empty: true` in its embed stage.")
    text, pooled = (from_npy(base64.b64decode(record["empty"][name])) for name in ("text", "pooled"))
    return TextEmbedding(text, pooled)
