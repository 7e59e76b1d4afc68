"""Images to captions: from their metadata, or from what they show."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pipelines.captioners import Caption as Text
from pipelines.captioners import CaptionerConfig, Subject, Template, merged
from pipelines.shards import canonical
from pipelines.stage import Input, Inputs, Row, Sample, ShardPlan, ShardStage

_CHUNK = 64
"""Samples held at once."""


@dataclass(frozen=True, kw_only=True)
class Caption(ShardStage):
    """Writes `captions.json`, all captions of a sample with weight and source, and `txt`, the first."""

    version: ClassVar[int] = 1
    primary: ClassVar[str] = "images"

    images: Annotated[str, Input("dataset", ("json", "image"))]
    captioners: tuple[CaptionerConfig, ...] = (Template(),)
    """Each adds its captions; the first one's come first."""

    def __post_init__(self) -> None:
        if not self.captioners:
            raise ValueError(
                "caption needs at least one captioner, such as {kind: template, text: '{text}'}."
            )

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column for c in self.captioners for column in c.columns))

    def external(self) -> dict[str, str]:
        return {name: digest for c in self.captioners for name, digest in c.external().items()}

    def summary(self) -> str:
        return " and ".join(
            f'"{c.text}"' if isinstance(c, Template) else f"top {c.top} tags" for c in self.captioners
        )

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        images = inputs["images"]
        columns = self.columns("images")
        for captioner in self.captioners:
            if isinstance(captioner, Template):
                _check_fields(images, captioner)
        captioners = [c.build() for c in self.captioners]

        def caption(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            wanted = [row.key for row in rows if not row.reject]
            records = iter(images.read(shard.name, wanted, columns))
            made: dict[str, Sample] = {}
            for chunk in iter(lambda: list(itertools.islice(records, _CHUNK)), []):
                subjects = [_subject(record.members) for record in chunk]
                found = zip(*(c.captions(subjects) for c in captioners), strict=True)
                for record, subject, lists in zip(chunk, subjects, found, strict=True):
                    captions = merged(itertools.chain(*lists))
                    lacking = next((field for c in captioners if (field := c.lacks(subject))), "caption")
                    made[record.key] = (
                        Sample(key=record.key, members=_members(captions))
                        if captions
                        else Sample(key=record.key, reject=f"no_{lacking}")
                    )
            for row in rows:
                yield made.pop(row.key, Sample(key=row.key, reject=row.reject or "no_metadata"))

        return caption

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """The template that turns a user's few words into a caption of the kind that was trained on."""
        templates = [c.text for c in self.captioners if isinstance(c, Template) and len(c.fields) == 1]
        return {"statistics": {"template": templates[0] if templates else None}}


def _subject(members: Any) -> Subject:
    fields = json.loads(members["json"]) if "json" in members else {}
    return Subject(fields=fields, image=members.get("image"))


def _members(captions: Sequence[Text]) -> dict[str, bytes]:
    return {
        "captions.json": canonical([caption.to_json() for caption in captions]),
        "txt": captions[0].text.encode(),
    }


def _check_fields(images: Any, template: Template) -> None:
    """`ValueError` if no image of the whole dataset has one of the template's fields: it is misspelt."""
    lacking, known = set(template.fields), set()
    for shard in images.shards:
        for record in images.read(shard.name, columns=("json",)) if lacking else ():
            fields = json.loads(record.members["json"])
            known |= set(fields)
            lacking -= set(fields)
            if not lacking:
                return
    if lacking:
        raise ValueError(
            f"No image has the field {', '.join(sorted(lacking))} that the caption {template.text!r} needs; "
            f"the fields are {', '.join(sorted(known)) or 'none'}."
        )
