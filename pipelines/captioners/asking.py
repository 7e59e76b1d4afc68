"""Several captioners on the same subjects, one after the other, and what comes of it for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.captioners.caption import NOTHING, Caption, Captioner, Subject, merged
from pipelines.captioners.endpoint import REFUSED, UNAVAILABLE

_TELLING = (UNAVAILABLE, REFUSED)
"""Reasons that are told before any other: something can be done about them."""


@dataclass
class Told:
    """What all captioners said of a subject."""

    captions: list[Caption]
    """Equal ones merged; the earlier captioners' come first."""
    reasons: list[str] = field(default_factory=list)
    """Of the captioners that said nothing."""
    meta: dict[str, Any] = field(default_factory=dict)
    """For the shard's index: `caption.<number of the captioner>.<name>`."""

    @property
    def reject(self) -> str | None:
        """Why there is no caption at all; None if there is one."""
        if self.captions:
            return None
        order = {reason: n for n, reason in enumerate((*_TELLING, *self.reasons, NOTHING))}
        return min([*self.reasons, NOTHING], key=lambda reason: order[reason])


def ask(
    captioners: Iterable[tuple[Any, Captioner]],
    subjects: Sequence[Subject],
    known: Sequence[Sequence[Caption]],
) -> list[Told]:
    """One a subject.

    Args:
        captioners: each with its config, which may be asked for `only_missing`: subjects without a caption.
        known: captions that each subject has already.
    """
    told = [Told(captions=merged(captions)) for captions in known]
    for number, (config, captioner) in enumerate(captioners):
        asked = [n for n, one in enumerate(told) if not (config.only_missing and one.captions)]
        answers = captioner.answers([subjects[n] for n in asked])
        for n, answer in zip(asked, answers, strict=True):
            one = told[n]
            one.captions = merged([*one.captions, *answer.captions])
            one.reasons += [answer.reject] if answer.reject else []
            one.meta |= {f"caption.{number}.{name}": value for name, value in answer.meta.items()}
    return told
