"""How large an image is, and how long for its width: known without decoding it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipelines.scorers.scorer import Scores, Subject, Unscored, prefixed, rounded
from pipelines.sources.header import header

_NAMES = ("width", "height", "shorter", "aspect")


@dataclass(frozen=True, kw_only=True)
class Size:
    """`width`, `height`, the `shorter` of the two (px) and `aspect`, width over height."""

    kind: Literal["size"] = "size"
    of: Literal["original", "stored"] = "original"
    """The picture as it came, before ingest made it smaller, or the one that is stored."""
    name: str | None = None
    """Goes before the names of its scores: `stored` gives `stored_width`."""

    reads: ClassVar[tuple[str, ...]] = ("image", "json")
    pixels: ClassVar[bool] = False
    guarded: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        return prefixed(self.name, *_NAMES)

    def external(self) -> dict[str, str]:
        return {}

    def build(self, *, micro_batch: int = 16) -> SizeScorer:
        return SizeScorer(self)

    def knows(self, facts: object) -> bool:
        """Whether the metadata say it, so that not even the header is read."""
        return isinstance(facts, dict) and self._sides(facts) is not None

    def _sides(self, facts: dict[str, object]) -> tuple[int, int] | None:
        for prefix in ("original_", "") if self.of == "original" else ("",):
            width, height = facts.get(f"{prefix}width"), facts.get(f"{prefix}height")
            if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
                return width, height
        return None


class SizeScorer:
    def __init__(self, config: Size) -> None:
        self._config = config

    def scores(self, subjects: Sequence[Subject]) -> list[Scores | Unscored]:
        return [self._scores(subject) for subject in subjects]

    def _scores(self, subject: Subject) -> Scores:
        sides = self._config._sides(dict(subject.facts)) or header(subject.data or b"").upright
        width, height = map(float, sides)
        values = (width, height, min(sides), rounded(width / height))
        return dict(zip(self._config.names, map(float, values), strict=True))
