"""Images to captions: from their metadata, or from what they show."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pipelines.captioners import Caption as Text
from pipelines.captioners import CaptionerConfig, CoCa, Endpoint, Subject, Template
from pipelines.captioners.asking import Told, ask
from pipelines.captioners.usage import sentence, usage
from pipelines.shards import canonical
from pipelines.stage import KEEP, Input, Inputs, Row, Sample, ShardPlan, ShardStage, added

_CHUNK = 64
"""Samples held at once."""
_COLUMN = "captions.json"


@dataclass(frozen=True, kw_only=True)
class Caption(ShardStage):
    """Writes `captions.json`, all captions of a sample with weight and source, and `txt`, the first.

    Training draws one of them by weight each time that it sees the sample.

    A stage's captioners are one piece of work: another field of one, or one more, asks all of them again.
    So a captioner that takes hours or money is best a stage of its own, and a last one merges:

        words:    {stage: caption, images: images, captioners: [{kind: template, text: "{text}"}]}
        seen:     {stage: caption, images: images, captioners: [{kind: endpoint, url: ..., model: ...}]}
        captions: {stage: caption, images: images, captions: [seen, words], captioners: []}

    Then `seen` stays as it is whatever is added, its failures are its rejects, which `latentmill run
    --retry-rejects` asks for again, and a sample is lost only where every one of them has nothing to say.
    In the merging stage `captioners: [{kind: tags, only_missing: true}]` names what has no caption yet.
    """

    version: ClassVar[int] = 2
    primary: ClassVar[str] = "images"

    images: Annotated[str, Input("dataset", ("json", "image"))]
    captions: Annotated[tuple[str, ...], Input("dataset", (_COLUMN,))] = added(())
    """Other caption stages on the same images, whose captions come before those that are made here."""
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = added(None)
    """A filter or deduplicate stage: only images that it keeps are captioned."""
    model: Annotated[str | None, Input("snapshot")] = added(None)
    """A CoCa that train_captioner made: what captioners of kind `coca` without a `path` speak by."""
    captioners: tuple[CaptionerConfig, ...] = (Template(),)
    """Each adds its captions; the first one's come first. One with `only_missing` is asked for what the ones
    before it, and `captions`, gave nothing."""

    def __post_init__(self) -> None:
        if not self.captioners and not self.captions:
            raise ValueError(
                "caption needs at least one captioner, such as {kind: template, text: '{text}'}."
            )
        if self.captioners and self.captioners[0].only_missing and not self.captions:
            raise ValueError(
                "caption's first captioner is `only_missing`, and nothing comes before it: leave that out."
            )
        without = any(isinstance(c, CoCa) and not c.path for c in self.captioners)
        if without and self.model is None:
            raise ValueError(
                "caption has a captioner of kind coca without weights: give it a `path` to a folder of "
                "open_clip's, or the stage a `model` that train_captioner makes."
            )
        if self.model is not None and not without:
            raise ValueError(
                "caption has a `model` that no captioner reads: add {kind: coca}, without a path."
            )

    @property
    def accelerated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Templates and endpoints leave the GPU to others."""
        return not all(isinstance(c, (Template, Endpoint)) for c in self.captioners)

    def columns(self, name: str) -> tuple[str, ...]:
        if name != "images":
            return super().columns(name)
        return tuple(dict.fromkeys(column for c in self.captioners for column in c.columns))

    def external(self) -> dict[str, str]:
        return {name: digest for c in self.captioners for name, digest in c.external().items()}

    def summary(self) -> str:
        merging = f"{len(self.captions)} stages' captions" if self.captions else ""
        return " and ".join(filter(None, [merging, *(c.summary for c in self.captioners)]))

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        """A row lives as long as its image: what another captioner had nothing to say of is not lost here."""
        rows = super().rows({**inputs, "captions": None}, shard)
        others: Sequence[Any] = inputs.get("captions") or ()
        for number, earlier in enumerate(others):
            index = earlier.index(shard.name)
            if index.keys != [row.key for row in rows]:
                raise ValueError(
                    f"captions.{number} and images differ in the rows of shard {shard.name}: not of one line."
                )
            read = [index.digests(n, (_COLUMN,)) for n in range(len(rows))]
            rows = [
                row if row.reject else replace(row, reads=(*row.reads, *digests))
                for row, digests in zip(rows, read, strict=True)
            ]
        return rows

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        images, columns = inputs["images"], self.columns("images")
        for captioner in self.captioners:
            if isinstance(captioner, Template):
                _check_fields(images, captioner)
        captioners = [(config, _weighed(config, inputs.get("model")).build()) for config in self.captioners]
        everyone = any(not config.only_missing for config in self.captioners)
        # Several rounds of an endpoint's requests: the last of a chunk leave places empty.
        size = max([_CHUNK, *(4 * c.concurrency for c in self.captioners if isinstance(c, Endpoint))])

        def caption(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            wanted = [row.key for row in rows if not row.reject]
            known = _known(inputs.get("captions") or (), shard.name, wanted)
            asked = [key for key in wanted if everyone or not known.get(key)] if captioners else []
            told = {key: ask((), (), (captions,))[0] for key, captions in known.items()}
            records = iter(images.read(shard.name, asked, columns)) if asked else iter(())
            for chunk in iter(lambda: list(itertools.islice(records, size)), []):
                subjects = [_subject(record.members) for record in chunk]
                answers = ask(captioners, subjects, [known.get(record.key, ()) for record in chunk])
                told |= {record.key: answer for record, answer in zip(chunk, answers, strict=True)}
            lacking = Told(captions=[], reasons=["no_metadata"] if captioners else [])
            for row in rows:
                yield _sample(row, told.pop(row.key, lacking))

        return caption

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """The template that turns a user's few words into a caption of the kind that was trained on, and what
        endpoints took."""
        templates = [c.text for c in self.captioners if isinstance(c, Template) and len(c.fields) == 1]
        for earlier in inputs.get("captions") or ():
            templates += filter(None, [earlier.manifest.get("statistics", {}).get("template")])
        statistics: dict[str, Any] = {"template": templates[0] if templates else None}
        if not any(isinstance(c, Endpoint) for c in self.captioners):
            return {"statistics": statistics}
        metas = (meta for shard in dataset.shards for meta in dataset.index(shard.name).meta)
        statistics["endpoints"] = usage(self.captioners, metas)
        return {"statistics": statistics, "notes": [sentence(one) for one in statistics["endpoints"]]}


def _weighed(config: CaptionerConfig, model: Any) -> CaptionerConfig:
    """A CoCa without weights of its own, with the snapshot's."""
    if not isinstance(config, CoCa) or config.path:
        return config
    if model.record.get("task") != "captioner":
        raise ValueError(
            f"{model.storage.url} is a snapshot of kind {model.record.get('task')}, which does not write: "
            "give `model` one of train_captioner."
        )
    return dataclasses.replace(config, path=str(model.local()))


def _known(datasets: Sequence[Any], shard: str, keys: Sequence[str]) -> dict[str, list[Text]]:
    """Captions that other stages made, by key."""
    found: dict[str, list[Text]] = {}
    for dataset in datasets:
        for record in dataset.read(shard, keys, (_COLUMN,)):
            listed = json.loads(record.members[_COLUMN])
            found.setdefault(record.key, []).extend(Text.from_json(one) for one in listed)
    return found


def _subject(members: Mapping[str, bytes]) -> Subject:
    fields = json.loads(members["json"]) if "json" in members else {}
    return Subject(fields=fields, image=members.get("image"))


def _sample(row: Row, told: Told) -> Sample:
    reject = row.reject or told.reject
    if reject:
        return Sample(key=row.key, reject=reject, meta=told.meta)
    members = {
        _COLUMN: canonical([caption.to_json() for caption in told.captions]),
        "txt": told.captions[0].text.encode(),
    }
    return Sample(key=row.key, members=members, meta=told.meta)


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
