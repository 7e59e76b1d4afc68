"""A caption, what it is made from, and what makes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pipelines.captioners.wording import cleaned

NOTHING = "no_caption"
"""Reason of a subject that a captioner looked at and had nothing to say of."""


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

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Caption:
        return cls(
            text=str(record["text"]),
            weight=float(record["weight"]),
            source=str(record.get("source", "")),
            probability=record.get("probability"),
        )


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A sample to be captioned."""

    fields: Mapping[str, Any]
    """Its metadata."""
    image: bytes | None = None
    """Encoded, if a captioner asked for it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a captioner says of one subject."""

    captions: tuple[Caption, ...] = ()
    """Best first."""
    reject: str | None = None
    """Reason code, where there is no caption."""
    meta: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """What it took, for the shard's index."""


class Captioner(Protocol):
    def answers(self, subjects: Sequence[Subject]) -> list[Answer]:
        """One a subject, in their order. Company changes nothing: what is said of a subject does not depend
        on the others."""
        ...


def merged(captions: Iterable[Caption]) -> list[Caption]:
    """Cleaned, and equal texts as one, with the sum of their weights and the first one's source; order kept.

    A text of which cleaning leaves nothing is none.
    """
    found: dict[str, Caption] = {}
    for caption in captions:
        text = cleaned(caption.text)
        known = found.get(text)
        if text:
            found[text] = (
                replace(known, weight=known.weight + caption.weight) if known else replace(caption, text=text)
            )
    return list(found.values())
