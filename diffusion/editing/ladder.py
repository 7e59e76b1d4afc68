"""The part of a sampler's ladder that is left where images do not start as noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def squeezed(times: Sequence[float], share: float) -> list[float]:
    """As many times over the last `share` of a ladder: between its rungs, so that no share is rounded to one.

    A sampler takes all of its steps, however far down it starts, and spaces them as it did.
    """
    rungs = np.linspace(1, 0, len(times))
    return np.interp(share * rungs, rungs[::-1], times[::-1]).tolist()


def share(times: Sequence[float], start: float) -> float:
    """The share at whose head a time is: inverse of the first of `squeezed`; 1 above the ladder."""
    rungs = np.linspace(1, 0, len(times))
    return float(np.interp(start, times[::-1], rungs[::-1]))
