"""What captions are made from: metadata by a template, images by tags, a local model or an endpoint."""

from __future__ import annotations

from pipelines.captioners.caption import Answer, Caption, Captioner, Subject, merged
from pipelines.captioners.clip_tags import ClipTags
from pipelines.captioners.coca import CoCa
from pipelines.captioners.endpoint import Endpoint
from pipelines.captioners.tags import Tags
from pipelines.captioners.template import Template
from pipelines.captioners.transformer import ImageToText

CaptionerConfig = Template | Tags | ClipTags | ImageToText | CoCa | Endpoint

__all__ = [
    "Answer",
    "Caption",
    "Captioner",
    "CaptionerConfig",
    "ClipTags",
    "CoCa",
    "Endpoint",
    "ImageToText",
    "Subject",
    "Tags",
    "Template",
    "merged",
]
