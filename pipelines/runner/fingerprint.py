"""What a stage's output is called: a digest of all that decides it, and of nothing else.

Two runs with equal fingerprints make equal outputs, so a finished one is used again. Fields that decide only
how fast a stage runs, names, paths, times and the order of a recipe's lines are not in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.shards import canonical
from pipelines.stage import Inputs, Row, ShardStage, Stage

AnyStage = ShardStage | Stage
LENGTH = 32
"""Hex digits: 128 bits, short enough to read in a path."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A stage with its inputs, as digests."""

    stage: str
    version: int
    meaning: Mapping[str, Any]
    inputs: Mapping[str, str | None]
    """Input (`field`, or `field.0`, ... where it names several) -> digest of the columns that are read, or of
    the snapshot; None for one that is not set."""
    external: Mapping[str, str]

    @classmethod
    def of(cls, stage: AnyStage, inputs: Inputs) -> Identity:
        return cls(
            stage=stage.name(),
            version=stage.version,
            meaning=stage.meaning(),
            inputs=_digests(stage, inputs),
            external=stage.external(),
        )

    @property
    def fingerprint(self) -> str:
        """Name of the output's folder."""
        return digest([self.stage, self.version, self.meaning, self.inputs, self.external])

    def lineage(self, length: tuple[str, ...]) -> str:
        """Equal for trainings that differ in nothing but how long they go on: they share checkpoints."""
        meaning = {k: v for k, v in self.meaning.items() if k not in length}
        return digest(["lineage", self.stage, self.version, meaning, self.inputs, self.external])


def work_of(stage: ShardStage, inputs: Inputs) -> str:
    """What decides every sample of a stage alike; with `Row.reads` it makes the work key.

    Datasets enter by the bytes that a row reads, so that ten more images leave the work of the others as it
    was; snapshots enter whole. What is kept is left out: a row's sample is the same whoever else is dropped.
    """
    if stage.retry is not None:  # which dataset is tried again decides none of its samples
        stage = dataclasses.replace(stage, retry=None)
    marks = stage.inputs()
    whole = _digests(stage, inputs, kinds=("snapshot", "report"))
    present = sorted(n for n in marks if inputs.get(n) not in (None, ()) and n not in stage.keeps())
    return digest(["work", stage.name(), stage.version, stage.work(), whole, present])


def work_key(work: str, row: Row) -> str:
    """Of one sample; "" for a row that an input had rejected, which is nobody's work."""
    return "" if row.reject else digest([work, list(row.reads)])


def digest(value: Any) -> str:
    """Of JSON types, whatever the order of their keys."""
    return hashlib.sha256(canonical(value)).hexdigest()[:LENGTH]


def _digests(
    stage: AnyStage, inputs: Inputs, kinds: tuple[str, ...] = ("dataset", "snapshot", "report")
) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    added = {f.name for f in dataclasses.fields(stage) if "added" in f.metadata}
    for name, mark in stage.inputs().items():
        if mark.kind in kinds and not (name in added and inputs.get(name) is None):
            columns = stage.columns(name) if mark.kind == "dataset" else ()
            given = inputs.get(name)
            each = {name: given}
            if isinstance(given, tuple):
                each = {f"{name}.{n}": one for n, one in enumerate(given)}
            for place, artifact in each.items():
                found[place] = None if artifact is None else artifact.digest(*([columns] if columns else []))
    return found
