"""Captions from metadata: "a 3D emoji of {text}"."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.captioners.caption import Answer, Caption, Subject
from pipelines.stage import added


@dataclass(frozen=True, kw_only=True)
class Template:
    """A sentence with metadata fields in braces."""

    kind: Literal["template"] = "template"
    text: str = "{text}"
    """`{text}`, `{label}` or any other field of the images' metadata; `{{` for a brace."""
    weight: float = 1.0
    """Relative to the other captioners'."""
    only_missing: bool = added(False)
    """Asked only for images that the captioners before it gave nothing."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("A caption template is empty; give it a text such as 'a photo of {label}'.")
        if self.weight <= 0:
            raise ValueError(f"A captioner's weight is {self.weight}; it must be above 0.")
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise ValueError(f"The caption template {self.text!r} cannot be read: {error}.") from error
        for _, field, form, conversion in parts:
            if field is not None and (not field.isidentifier() or form or conversion):
                raise ValueError(f"{{{field}}} in {self.text!r} is not the plain name of a metadata field.")

    @property
    def fields(self) -> tuple[str, ...]:
        """Metadata fields that it needs."""
        names = (field for _, field, _, _ in string.Formatter().parse(self.text) if field)
        return tuple(dict.fromkeys(names))

    @property
    def columns(self) -> tuple[str, ...]:
        return ("json",)

    @property
    def summary(self) -> str:
        return f'"{self.text}"'

    def external(self) -> dict[str, str]:
        return {}

    def build(self) -> TemplateCaptioner:
        return TemplateCaptioner(self)


class TemplateCaptioner:
    def __init__(self, config: Template) -> None:
        self._config = config

    def answers(self, subjects: Sequence[Subject]) -> list[Answer]:
        return [self._answer(subject) for subject in subjects]

    def _answer(self, subject: Subject) -> Answer:
        lacking = next((f for f in self._config.fields if not _spoken(subject.fields.get(f))), None)
        return Answer(reject=f"no_{lacking}") if lacking else Answer(captions=(self._caption(subject),))

    def _caption(self, subject: Subject) -> Caption:
        words = {field: _spoken(subject.fields[field]) for field in self._config.fields}
        text = " ".join(self._config.text.format(**words).split())
        return Caption(text=text, weight=self._config.weight, source="template")


def _spoken(value: Any) -> str:
    """A metadata value as words; "" where there is nothing to say."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    return str(value).strip()
