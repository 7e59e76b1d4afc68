"""A caption, what it is made from, and what makes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Caption:
    text: str
    weight: float
    """Relative to the sample's other captions: how often training takes it."""
    source: str
    """Kind of the captioner."""
    probability: float | None = None
    """Of a tag, by its classifier."""

    def to_json(self) -> dict[str, Any]:
        record = {"text": self.text, "weight": self.weight, "source": self.source}
        return record if self.probability is None else {**record, "probability": self.probability}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A sample to be captioned."""

    fields: Mapping[str, Any]
    """Its metadata."""
    image: bytes | None = None
    """Encoded, if a captioner asked for it."""


class Captioner(Protocol):
    def captions(self, subjects: Sequence[Subject]) -> list[list[Caption]]:
        """Best first; none where the subject gives nothing to say."""
        ...

    def lacks(self, subject: Subject) -> str | None:
        """Name of what kept it from captioning the subject; None if nothing did."""
        ...


def merged(captions: Iterable[Caption]) -> list[Caption]:
    """Equal texts as one, with the sum of their weights and the first one's source; order kept."""
    found: dict[str, Caption] = {}
    for caption in captions:
        known = found.get(caption.text)
        found[caption.text] = replace(known, weight=known.weight + caption.weight) if known else caption
    return list(found.values())
