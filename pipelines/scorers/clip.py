"""Image vectors by open_clip, made once for all scorers that name the same checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.embedders import OpenClipImages, OpenClipTexts
from pipelines.scorers.scorer import Subject


@functools.lru_cache(maxsize=2)
def image_encoder(path: str, micro_batch: int, identity: str) -> Any:
    """`identity` is the checkpoint's: another one at the same path is loaded anew."""
    return OpenClipImages(path=path).build(micro_batch=micro_batch)


@functools.lru_cache(maxsize=2)
def text_encoder(path: str, micro_batch: int, identity: str) -> Any:
    return OpenClipTexts(path=path).build(micro_batch=micro_batch)


def image_vectors(path: str, micro_batch: int, subjects: Sequence[Subject]) -> np.ndarray:
    """fp32 [subjects, width], each of length 1."""
    identity = OpenClipImages(path=path).identity()
    new = [subject for subject in subjects if identity not in subject.vectors]
    if new:
        encoder = image_encoder(path, micro_batch, identity)
        for subject, vector in zip(new, encoder.encode([s.image for s in new]), strict=True):
            subject.vectors[identity] = unit(vector)
    return np.stack([subject.vectors[identity] for subject in subjects])


def unit(vector: np.ndarray) -> np.ndarray:
    """fp32, scaled to length 1 again: the encoders give fp16."""
    wide = vector.astype(np.float32)
    return wide / np.linalg.norm(wide)
