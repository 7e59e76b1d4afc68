"""Where images come from. A source lists what it holds without parsing a picture, and reads one at a time."""

from __future__ import annotations

from pipelines.sources.folder import FolderSource
from pipelines.sources.glob import GlobSource
from pipelines.sources.idx import IdxSource
from pipelines.sources.zip import ZipSource

Source = FolderSource | ZipSource | GlobSource | IdxSource

__all__ = ["FolderSource", "GlobSource", "IdxSource", "Source", "ZipSource"]
