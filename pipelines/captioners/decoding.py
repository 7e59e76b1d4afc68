"""How a captioner that speaks word by word chooses its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """The likeliest word at each step."""

    kind: Literal["greedy"] = "greedy"

    @property
    def beams(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class Beams:
    """Several captions are followed at once, and the best of those that ended first is taken."""

    kind: Literal["beams"] = "beams"
    width: int = 4
    """Captions that are followed; 1 is greedy."""
    length_penalty: float = 1.0
    """Power of its length that a caption's log-probability is divided by: above 0 longer ones win, at 0 the
    likeliest."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"beams: width is {self.width}; it must be at least 1.")

    @property
    def beams(self) -> int:
        return self.width


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """By chance, which is a function of the seed and the image's bytes: equal images, equal captions."""

    kind: Literal["sampled"] = "sampled"
    temperature: float = 1.0
    """Below 1, likely words become likelier."""
    top_k: int | None = None
    """Only so many likeliest words; all if None."""
    top_p: float | None = None
    """Only the fewest likeliest words that have this probability together; all if None."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"sampled: temperature is {self.temperature:g}; it must be above 0 (`kind: greedy` is 0)."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"sampled: top_k is {self.top_k}; it must be at least 1, or null.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"sampled: top_p is {self.top_p:g}; it must be above 0 and at most 1, or null.")

    @property
    def beams(self) -> int:
        return 1


Decoding = Greedy | Beams | Sampled
