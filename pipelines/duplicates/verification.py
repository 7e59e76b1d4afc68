"""A second look at two pictures that may be one: they are laid over each other and compared place by place.

One is scaled, shifted and mirrored until it lies on the other (Gauss-Newton on the residual, coarse to fine:
Lucas and Kanade, 1981; gain and offset fitted along: Evangelidis and Psarakis, 2008). The correlation of the
whole says little, as a clock at another hour correlates by .97. So what counts is the *worst place*: the
share of a window's structure that the other picture does not explain.

Pictures are compared by the largest and the smallest of red, green and blue in each pixel, which no shift of
hue changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SIDE = 64
"""Pixels a side of a thumbnail."""
BYTES = 2 * SIDE * SIDE
"""Of a thumbnail."""

_COARSE, _MIDDLE = 16, 32
_WINDOW = 4
"""Reach of a window of 9 x 9 pixels."""
_EVEN = 0.1
"""Share of the whole picture's variance that counts as structure everywhere, as even places have noise."""
_FLAT = 2.0
"""Standard deviation, in levels of 255, below which a picture has no shape to compare."""
_OVERLAP = 0.55
"""Share of the picture that must be seen in both."""
_STARTS = ((1.0, 0.0), (0.9, 0.0), (1.1, 0.0))
"""Scale and shift from which the search starts: the same frame, a crop, and what it was cropped from."""
_HOPELESS = 0.8
"""Correlation of small pictures below which there is nothing to refine; that of real crops is above .87."""
_CHUNK = 64
"""Pairs at once: so many stay in the cache."""


def thumbnail(image: Any) -> bytes:
    """What is compared of a PIL image: uint8 [2, SIDE, SIDE], largest and smallest colour; 8 KiB."""
    from PIL import Image, ImageChops

    red, green, blue = image.convert("RGB").split()
    planes = (
        ImageChops.lighter(ImageChops.lighter(red, green), blue),
        ImageChops.darker(ImageChops.darker(red, green), blue),
    )
    # before the reduction, as a mean of largest values is not the largest of means
    # bicubic, as a small picture that is enlarged in blocks is another one once it is cropped
    return b"".join(plane.resize((SIDE, SIDE), Image.Resampling.BICUBIC).tobytes() for plane in planes)


def agreement(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How far the pictures of each pair agree in the place where they agree least: 1 for the same picture.

    Args:
        left: uint8 [n, 2, SIDE, SIDE], see `thumbnail`.
        right: the same, of the pairs' other pictures; may be mirrored, cropped, lighter or of another hue.

    Returns:
        float32 [n] in 0 to 1; 0 where a picture has no shape. A pair's value does not depend on the others.
    """
    found = np.zeros(len(left), np.float32)
    for start in range(0, len(left), _CHUNK):
        part = slice(start, start + _CHUNK)
        found[part] = _agreement(left[part].astype(np.float32), right[part].astype(np.float32))
    return found


def _agreement(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    found = np.zeros(len(left), np.float32)
    shaped = np.minimum(left.std((2, 3)).max(1), right.std((2, 3)).max(1)) >= _FLAT
    rows = np.flatnonzero(shaped)
    left, right = left[rows], right[rows]
    if not len(rows):
        return found
    place, mirrored, near = _coarse(left, right)
    right = np.where(mirrored[:, None, None, None], right[..., ::-1], right)
    rows, left, right, place = (values[near >= _HOPELESS] for values in (rows, left, right, place))
    for side, steps in ((_MIDDLE, 4), (SIDE, 4)):
        if not len(rows):
            return found
        place, near = _refined(_pooled(left, side), _pooled(right, side), place, steps)
        rows, left, right, place = (values[near >= _HOPELESS] for values in (rows, left, right, place))
    if len(rows):
        found[rows] = 1 - np.minimum(_worst(left, right, place), 1)
    return found


def _coarse(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place [n, 4] (scale x, y, shift x, y), whether mirrored and correlation [n], of small pictures."""
    left, right = _pooled(left, _COARSE), _pooled(right, _COARSE)
    n = len(left)
    best, place, mirrored = np.full(n, -2.0, np.float32), np.zeros((n, 4), np.float32), np.zeros(n, bool)
    for mirror in (False, True):
        seen = right[..., ::-1] if mirror else right
        for scale, shift in _STARTS:
            start = np.tile(np.array([scale, scale, shift, shift], np.float32), (n, 1))
            moved, near = _refined(left, seen, start, 5)
            better = near > best
            best[better], place[better], mirrored[better] = near[better], moved[better], mirror
    return place, mirrored, best


def _refined(
    left: np.ndarray, right: np.ndarray, place: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton steps from `place`: the place of highest correlation on the way, and that correlation."""
    n, _, side, _ = left.shape
    down, across = (slope * (side / 2) for slope in np.gradient(left, axis=(2, 3)))
    u = _positions(side)
    best, found = np.full(n, -2.0, np.float32), place
    for step in range(steps + 1):
        moved, mask = _moved(left, place)
        fit = _Fit(moved, right, mask)
        near = np.where(mask.mean((1, 2, 3)) < _OVERLAP, -1, fit.correlation)
        better = near > best
        best, found = np.where(better, near, best), np.where(better[:, None], place, found)
        if step == steps:
            break
        gain = np.clip(fit.covariance / (fit.left + 1e-9), 0.2, 5)[:, None, None, None]
        residual = (fit.right_part - gain * fit.left_part).reshape(n, -1)
        x, y = _moved(across, place)[0], _moved(down, place)[0]
        slopes = np.stack([x * u, y * u[:, None], x, y], 1) * (mask * gain)[:, None]
        # the offset is fitted along: what a step changes in the mean is none of its merit
        slopes -= slopes.sum((2, 3, 4), keepdims=True) / fit.count[:, None, None, None, None] * mask[:, None]
        slopes = slopes.reshape(n, 4, -1)
        normal = slopes @ slopes.transpose(0, 2, 1)
        damping = 1e-2 * np.trace(normal, axis1=1, axis2=2) / 4 + 1e-3
        normal += np.eye(4, dtype=np.float32) * damping[:, None, None]
        move = np.linalg.solve(normal, slopes @ residual[:, :, None])[:, :, 0]
        place = place + np.clip(move, -0.1, 0.1).astype(np.float32)
        place[:, :2] = np.clip(place[:, :2], 0.7, 1 / 0.7)
        place[:, 2:] = np.clip(place[:, 2:], -0.45, 0.45)
    return found, best


def _worst(left: np.ndarray, right: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Largest share, over windows, of the right picture's structure that the left one leaves unexplained."""
    moved, mask = _moved(left, place)
    # a crop is sharper than what it is cropped from, once that was reduced: both are made equally soft
    moved, right = _soft(np.where(mask > 0, moved, right)), _soft(right)
    fit = _Fit(moved, right, mask)
    gain = np.sqrt(fit.right / (fit.left + 1e-9))[:, None, None, None]
    residual = (fit.right_part - gain * fit.left_part) * mask
    seen = _sums(mask)[:, 0]
    part = fit.right_part
    structure = (
        _sums(part * part) - _sums(part) ** 2 / np.maximum(seen, 1)[:, None]
    ).sum(1)  # fmt: skip
    floor = _EVEN * (2 * fit.right / fit.count)[:, None, None] * seen
    shares = _sums(residual * residual).sum(1) / (np.maximum(structure, 0) + floor + 1e-6)
    return np.where(seen > (2 * _WINDOW + 1) ** 2 / 2, shares, 0).max((1, 2))


class _Fit:
    """Two pictures over their common part: means taken out, sums of squares and of products."""

    def __init__(self, left: np.ndarray, right: np.ndarray, mask: np.ndarray) -> None:
        self.count = mask.sum((1, 2, 3)) * left.shape[1] + 1e-9
        self.left_part, self.right_part = (
            (p - ((p * mask).sum((1, 2, 3)) / self.count)[:, None, None, None]) * mask for p in (left, right)
        )
        self.left = (self.left_part**2).sum((1, 2, 3))
        self.right = (self.right_part**2).sum((1, 2, 3))
        self.covariance = (self.left_part * self.right_part).sum((1, 2, 3))

    @property
    def correlation(self) -> np.ndarray:
        return self.covariance / np.sqrt(self.left * self.right + 1e-9)


def _moved(pictures: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, c, side, side] read at scale * u + shift, and where that is inside [n, 1, side, side]."""
    side = pictures.shape[-1]
    (across, x), (down, y) = (_reading(place[:, axis], place[:, axis + 2], side) for axis in (0, 1))
    moved = down[:, None] @ pictures @ across[:, None].transpose(0, 1, 3, 2)
    return moved, (y[:, :, None] * x[:, None, :])[:, None]


def _reading(scale: np.ndarray, shift: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation along an axis as a matrix [n, side, side], and which pixels it finds [n, side]."""
    at = (scale[:, None] * _positions(side) + shift[:, None] + 1) * (side / 2) - 0.5
    inside = (at >= -0.51) & (at <= side - 0.49)
    at = np.clip(at, 0, side - 1)
    near = 1 - np.abs(at[:, :, None] - np.arange(side, dtype=np.float32))
    return np.maximum(near, 0).astype(np.float32), inside.astype(np.float32)


def _positions(side: int) -> np.ndarray:
    return (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1


def _pooled(pictures: np.ndarray, side: int) -> np.ndarray:
    n, channels, old, _ = pictures.shape
    times = old // side
    return pictures.reshape(n, channels, side, times, side, times).mean((3, 5))


def _soft(pictures: np.ndarray) -> np.ndarray:
    """Twice smoothed by 1-2-1."""
    for _ in range(2):
        p = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        p = (p[:, :, :-2] + 2 * p[:, :, 1:-1] + p[:, :, 2:]) / 4
        pictures = (p[..., :-2] + 2 * p[..., 1:-1] + p[..., 2:]) / 4
    return pictures


def _sums(values: np.ndarray) -> np.ndarray:
    """Sum over the window around each pixel; outside the picture is nothing."""
    reach, width = _WINDOW, 2 * _WINDOW + 1
    edges = ((0, 0), (0, 0), (reach + 1, reach), (reach + 1, reach))
    total = np.pad(values, edges).cumsum(2, dtype=np.float64).cumsum(3)
    return (
        total[..., width:, width:]
        - total[..., :-width, width:]
        - (total[..., width:, :-width] - total[..., :-width, :-width])
    )
