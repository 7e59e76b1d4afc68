"""Where images come from. A source lists what it holds without parsing a picture, and reads one at a time."""

from __future__ import annotations

from pipelines.sources.folder import FolderSource
from pipelines.sources.glob import GlobSource
from pipelines.sources.huggingface import HuggingFaceSource
from pipelines.sources.idx import IdxSource
from pipelines.sources.img2dataset import Img2datasetSource
from pipelines.sources.table import TableSource
from pipelines.sources.webdataset import WebDatasetSource
from pipelines.sources.zip import ZipSource

Source = (
    FolderSource
    | ZipSource
    | GlobSource
    | WebDatasetSource
    | Img2datasetSource
    | TableSource
    | HuggingFaceSource
    | IdxSource
)

__all__ = [
    "FolderSource",
    "GlobSource",
    "HuggingFaceSource",
    "IdxSource",
    "Img2datasetSource",
    "Source",
    "TableSource",
    "WebDatasetSource",
    "ZipSource",
]
