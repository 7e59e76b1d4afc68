"""Columns of moments by resolution, and what the manifest says of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.buckets import Size, ordered

if TYPE_CHECKING:
    import numpy as np

MOMENTS, FLIPPED = "moments.npy", "flipped."


def column(resolution: int | None = None, *, flipped: bool = False) -> str:
    """Name of the column of moments at a resolution; None is the images' own."""
    at = MOMENTS if resolution is None else f"at{resolution}.{MOMENTS}"
    return FLIPPED + at if flipped else at


def statistics_at(statistics: Mapping[str, Any], resolution: int | None) -> Mapping[str, Any]:
    """What a manifest's statistics say of the latents at a resolution: `latents`, `shape`, `resolution`.

    `ValueError` where encode did not make that one.
    """
    if resolution is None:
        return statistics
    found = statistics.get("resolutions", {})
    if str(resolution) not in found:
        own = f"{statistics.get('resolution')} px (leave `resolution` out for it)"
        there = ", ".join([own, *(f"{side} px" for side in found)])
        raise ValueError(
            f"There are latents of {there}, and none of {resolution}: name it in `also` of the encode stage."
        )
    return found[str(resolution)]


def stored_resolution(statistics: Mapping[str, Any], resolution: int | None) -> int | None:
    """Which of the resolutions a model of `resolution` px was trained on; None is the images' own."""
    other = resolution != statistics.get("resolution") and str(resolution) in statistics.get(
        "resolutions", {}
    )
    return resolution if other else None


def regrouped(groups: Mapping[Size, np.ndarray], shrunk: Callable[[Size], Size]) -> dict[Size, np.ndarray]:
    """Row numbers by the size that images were shrunk to, from those by the size that they have."""
    import numpy as np

    found: dict[Size, list[np.ndarray]] = {}
    for size, rows in groups.items():
        found.setdefault(shrunk(size), []).append(rows)
    return {size: np.sort(np.concatenate(found[size])) for size in ordered(found)}
