"""What captions are made from: metadata by a template, images by zero-shot tags."""

from __future__ import annotations

from pipelines.captioners.caption import Caption, Captioner, Subject, merged
from pipelines.captioners.tags import Tags
from pipelines.captioners.template import Template

CaptionerConfig = Template | Tags

__all__ = ["Caption", "Captioner", "CaptionerConfig", "Subject", "Tags", "Template", "merged"]
