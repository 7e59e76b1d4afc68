"""How well vectors find one another: images by their captions and captions by their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def figures(
    images: Float[np.ndarray, "n w"], texts: Float[np.ndarray, "n w"], captions: Sequence[str]
) -> dict[str, float]:
    """Recall at 1 and 10 both ways, and the area under the ROC curve of telling pairs from other pairs.

    Args:
        images: of any length above 0; row n belongs to row n of `texts`.
        captions: their words: an equal caption is as right as the sample's own.

    Returns:
        `image_to_text_r1`, `image_to_text_r10`, `text_to_image_r1`, `text_to_image_r10`, `auc`, and
        `chance_r1`, what guessing would have.
    """
    cosines = _unit(images) @ _unit(texts).T
    alike = np.array(captions)[:, None] == np.array(captions)[None]
    found: dict[str, float] = {}
    for name, table in (("image_to_text", cosines), ("text_to_image", cosines.T)):
        ranks = _ranks(table, alike)
        found |= {f"{name}_r{k}": float((ranks < k).mean()) for k in (1, 10)}
    return {**found, "auc": _auc(cosines, alike), "chance_r1": float(alike.mean())}


def interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` trials (Wilson, 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    width = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, middle - width), min(1.0, middle + width)


def _ranks(cosines: np.ndarray, alike: np.ndarray) -> Int[np.ndarray, " n"]:
    """How many wrong ones are as near as the best right one, or nearer: a tie is no success."""
    best = np.where(alike, cosines, -np.inf).max(1, keepdims=True)
    return ((cosines >= best) & ~alike).sum(1)


def _auc(cosines: np.ndarray, alike: np.ndarray) -> float:
    """Chance that a pair is nearer than two that do not belong together; ties count half."""
    right, wrong = cosines[alike], np.sort(cosines[~alike])
    if not len(wrong):
        return 0.5
    below = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below.mean() / (2 * len(wrong)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)
