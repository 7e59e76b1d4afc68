"""Where images come from. A source lists what it holds without parsing a picture, and reads one at a time."""

from __future__ import annotations

from pipelines.sources.folder import FolderSource
from pipelines.sources.glob import GlobSource
from pipelines.sources.huggingface import HuggingFaceSource
from pipelines.sources.idx import IdxSource
from pipelines.sources.table import TableSource
from pipelines.sources.webdataset import WebDatasetSource
from pipelines.sources.zip import ZipSource

Source = (
    FolderSource | ZipSource | GlobSource | WebDatasetSource | TableSource | HuggingFaceSource | IdxSource
)

__all__ = [
    "FolderSource",
    "GlobSource",
    "HuggingFaceSource",
    "IdxSource",
    "Source",
    "TableSource",
    "WebDatasetSource",
    "ZipSource",
]
