"""Networks whose features a recipe can store: those of packages, of local folders, and a user's own."""

from __future__ import annotations

from pipelines.extractors.efficientnet import EfficientNetMaps
from pipelines.extractors.extractor import Extractor
from pipelines.extractors.function import OwnNetwork
from pipelines.extractors.open_clip import OpenClipMaps
from pipelines.extractors.transformer import TransformerMaps

ExtractorConfig = EfficientNetMaps | OpenClipMaps | TransformerMaps | OwnNetwork

__all__ = [
    "EfficientNetMaps",
    "Extractor",
    "ExtractorConfig",
    "OpenClipMaps",
    "OwnNetwork",
    "TransformerMaps",
]
