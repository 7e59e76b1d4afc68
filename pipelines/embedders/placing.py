"""Encoders without weights of their own, which a stage's CLIP gives them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from pipelines.embedders.embedding import settings_digest

Config = TypeVar("Config")


def of_clip(config: Any) -> bool:
    """Whether the encoder, or one of several, has no `path` where it needs one."""
    if getattr(config, "kind", None) == "several":
        return any(of_clip(encoder) for encoder in config.encoders)
    return getattr(config, "kind", None) == "open_clip" and not config.path


def located(config: Config, path: str) -> Config:
    """The same with `path` where it has none."""
    given: Any = config
    if not path or not of_clip(config):
        return config
    if given.kind == "several":
        return replace(given, encoders=tuple(located(encoder, path) for encoder in given.encoders))
    return replace(given, path=path)


def stated(config: Any) -> str | None:
    """Digest of the encoder without what a CLIP's snapshot gives; None where that is all."""
    if not of_clip(config):
        return config.identity()
    if config.kind != "several":
        return None
    return settings_digest(
        "several", config.join, *(stated(encoder) or "clip" for encoder in config.encoders)
    )
