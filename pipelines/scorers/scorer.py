"""What a scorer sees of a sample, and what it says of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Scores = dict[str, float]


@dataclass(eq=False)
class Subject:
    """A sample to be scored."""

    key: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Its metadata."""
    data: bytes | None = None
    """Its encoded image, if a scorer looks at the pixels."""
    captions: Sequence[Mapping[str, Any]] = ()
    """As `captions.json` lists them: text and weight, the first one first."""
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    """Embeddings of the image by an encoder's identity: made once for all scorers that ask for them."""

    @functools.cached_property
    def image(self) -> Image:
        """RGB."""
        from pipelines import pictures

        assert self.data is not None
        return pictures.decode(self.data)

    def forget(self) -> None:
        """Lets go of the decoded pixels."""
        self.__dict__.pop("image", None)


@dataclass(frozen=True)
class Unscored:
    """Why a sample has no score: it is not kept, whatever the thresholds are."""

    why: str


class Scorer(Protocol):
    """Loaded, and called on many samples."""

    def scores(self, subjects: Sequence[Subject]) -> list[Scores | Unscored]:
        """One an item, in order. A score does not depend on the other subjects."""
        ...


def prefixed(name: str | None, *own: str) -> tuple[str, ...]:
    """What a scorer's own numbers are called where it was given a name."""
    return own if name is None else tuple(f"{name}_{word}" for word in own)


def rounded(value: float) -> float:
    """Seven digits: what a 32-bit float holds, so that no more is compared or stored. `ValueError` if it is
    not finite."""
    if not math.isfinite(value):
        raise ValueError(f"a score is {value}")
    return float(f"{value:.7g}")
