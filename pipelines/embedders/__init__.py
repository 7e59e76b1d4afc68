"""Encoders of captions and images: those of installed packages, of local folders, of open_clip.

`text` and `image` turn what a recipe or a snapshot says into a config; its `build()` loads the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.embedders.clip import OpenClipImages, OpenClipTexts
from pipelines.embedders.efficientnet import EfficientNetImages
from pipelines.embedders.embedding import ImageEmbedder, TextEmbedder, TextEmbedding, caption_digest
from pipelines.embedders.minilm import MiniLM
from pipelines.embedders.several import Several
from pipelines.embedders.transformer import Transformer

TextEmbedderConfig = MiniLM | Transformer | OpenClipTexts | Several
ImageEmbedderConfig = OpenClipImages | EfficientNetImages

__all__ = [
    "EfficientNetImages",
    "ImageEmbedder",
    "ImageEmbedderConfig",
    "MiniLM",
    "OpenClipImages",
    "OpenClipTexts",
    "Several",
    "TextEmbedder",
    "TextEmbedderConfig",
    "TextEmbedding",
    "Transformer",
    "caption_digest",
    "image",
    "load_text",
    "text",
]

_TEXT: dict[str, type[TextEmbedderConfig]] = {
    "minilm": MiniLM,
    "transformers": Transformer,
    "open_clip": OpenClipTexts,
    "several": Several,
}
_IMAGE: dict[str, type[ImageEmbedderConfig]] = {
    "open_clip": OpenClipImages,
    "efficientnet_lite0": EfficientNetImages,
}


def text(record: Mapping[str, Any] | TextEmbedderConfig) -> TextEmbedderConfig:
    """The config that a record stands for: `{"kind": "minilm"}`, or what a manifest says of its texts."""
    return record if isinstance(record, TextEmbedderConfig) else _config(_TEXT, record)


def image(record: Mapping[str, Any] | ImageEmbedderConfig) -> ImageEmbedderConfig:
    """The same for images."""
    return record if isinstance(record, ImageEmbedderConfig) else _config(_IMAGE, record)


def load_text(record: Mapping[str, Any]) -> TextEmbedder:
    """The encoder that a manifest's record names: to the same vectors for the same captions.

    `ValueError` if the weights at hand are others than those of the record's `digest`.
    """
    config = text(record)
    if record.get("digest", config.identity()) != config.identity():
        raise ValueError(
            f"The text encoder at hand ({config.kind}) is another one than this was made with; "
            f"it needs {record['digest'][:12]}, this is {config.identity()[:12]}."
        )
    encoder = config.build(micro_batch=int(record.get("micro_batch", 16)))
    if record.get("store") == "pooled":
        from pipelines.embedders.storing import PooledOnly

        return PooledOnly(encoder)
    return encoder


def _config(kinds: Mapping[str, Any], record: Mapping[str, Any]) -> Any:
    kind = str(record.get("kind"))
    if kind not in kinds:
        raise ValueError(f"There is no encoder of kind {kind!r}; there are {', '.join(kinds)}.")
    fields = kinds[kind].__dataclass_fields__
    chosen = {name: value for name, value in record.items() if name in fields}
    if kind == "several":
        chosen["encoders"] = tuple(text(one) for one in chosen["encoders"])
    return kinds[kind](**chosen)
