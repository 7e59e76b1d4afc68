"""Images to numbers, by which a `filter` chooses."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pipelines.scorers import ScorerConfig, Scores, Sharpness, Size, Subject, Unscored
from pipelines.shards import canonical, read_index
from pipelines.stage import KEEP, Input, Inputs, Row, Sample, ShardPlan, ShardStage

if TYPE_CHECKING:
    from pipelines.dataset import Dataset

UNSCORED = "unscored"
"""Reason of a sample that a scorer could not score. A filter drops it: no gate is passed by breaking it."""
_CHUNK, _BYTES = 512, 1 << 26
"""Samples whose bytes are held at once, and how many bytes."""
_DECODED = 32
"""Samples whose pixels are."""


@dataclass(frozen=True, kw_only=True)
class Score(ShardStage):
    """Writes `scores.json`, a number by each score's name, and the same numbers into the index.

    Scores are made once; what is kept is for `filter` to say, as often as wanted. A sample that one of the
    scorers cannot score (it fails, crashes or takes too long) is rejected as `unscored`, with the reason.
    """

    version: ClassVar[int] = 1
    primary: ClassVar[str] = "images"

    images: Annotated[str, Input("dataset", ("image", "json"))]
    captions: Annotated[str | None, Input("dataset", ("captions.json",))] = None
    """Needed by the scorer `similarity`."""
    keep: Annotated[str | None, Input("dataset", (KEEP,))] = None
    """A filter or deduplicate stage: only samples that it keeps are scored."""
    scorers: tuple[ScorerConfig, ...] = (Size(), Sharpness())
    micro_batch: int = 16
    """Images a forward call, which the last is padded to: float results depend on it."""

    def __post_init__(self) -> None:
        if not self.scorers:
            raise ValueError("score needs at least one scorer, such as {kind: sharpness}.")
        if self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1.")
        if any(s.kind == "similarity" for s in self.scorers) and self.captions is None:
            raise ValueError("The scorer `similarity` needs `captions`: name the stage that makes them.")
        twice = [name for name, n in Counter(self._names()).items() if n > 1]
        if twice:
            raise ValueError(f"Two scorers give {', '.join(twice)}: set the `name` of one of them.")

    @property
    def accelerated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Only open_clip runs on a GPU; without it more workers fit than there are GPUs."""
        return any(s.kind in ("similarity", "aesthetic") for s in self.scorers)

    def columns(self, name: str) -> tuple[str, ...]:
        if name == "images":
            return tuple(dict.fromkeys(column for s in self.scorers for column in s.reads))
        return super().columns(name)

    def external(self) -> dict[str, str]:
        """By the scorer's number and kind, so that two of a kind are told apart."""
        return {
            f"{n} {scorer.kind} {what}": digest
            for n, scorer in enumerate(self.scorers)
            for what, digest in scorer.external().items()
        }

    def summary(self) -> str:
        return ", ".join(s.function if s.kind == "function" else s.kind for s in self.scorers)

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        scorers = [(s, s.build(micro_batch=self.micro_batch)) for s in self.scorers]

        def score(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            subjects = self._subjects(inputs, shard.name, [row.key for row in rows if not row.reject])
            made: dict[str, Sample] = {}
            for chunk in _chunks(subjects):
                found = [list[Scores | Unscored]() for _ in chunk]
                for start in range(0, len(chunk), _DECODED):
                    part = chunk[start : start + _DECODED]
                    for config, scorer in scorers:
                        if not config.guarded:
                            _add(found[start : start + _DECODED], scorer.scores(part), config)
                    for subject in part:
                        subject.forget()
                for config, scorer in scorers:
                    if config.guarded:
                        _add(found, scorer.scores(chunk), config)
                for subject, said in zip(chunk, found, strict=True):
                    made[subject.key] = _sample(subject.key, said)
            for row in rows:
                yield made.pop(row.key, Sample(key=row.key, reject=row.reject or "no_image"))

        return score

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """Each score's quantiles, to choose thresholds from, and what gave it; why some are missing."""
        from pipelines.scorers.thresholds import summary

        values: dict[str, array[float]] = {}
        why: Counter[str] = Counter()
        for shard in dataset.shards:
            index = read_index(dataset.storage, shard.name)
            for n, meta in enumerate(index.meta):
                if index.reasons[n] is None:
                    for name, value in meta.items():
                        values.setdefault(name, array("d")).append(value)
                elif index.reasons[n] == UNSCORED:
                    why[str(meta.get(UNSCORED))] += 1
        scorers = [
            {"kind": s.kind, "names": list(s.names) if s.names else None, "digests": s.external()}
            for s in self.scorers
        ]
        said = {name: summary(of) for name, of in sorted(values.items())}
        return {"statistics": {"scores": said, "scorers": scorers, UNSCORED: dict(why.most_common(20))}}

    def _names(self) -> list[str]:
        return [name for s in self.scorers for name in s.names or ()]

    def _subjects(self, inputs: Inputs, shard: str, keys: Sequence[str]) -> Iterator[Subject]:
        """In key order; a sample without an image is left out."""
        images: Dataset = inputs["images"]
        index = images.index(shard)
        place = {key: n for n, key in enumerate(index.keys)}
        keys = [key for key in keys if index.member(place[key], "image")]
        facts = {key: index.meta[place[key]] for key in keys}
        if any(s.kind == "function" for s in self.scorers):
            facts |= {r.key: json.loads(r.members["json"]) for r in images.read(shard, keys, ("json",))}
        captions: Mapping[str, Any] = {}
        if any(s.kind == "similarity" for s in self.scorers):
            records = inputs["captions"].read(shard, keys, ("captions.json",))
            captions = {r.key: json.loads(r.members["captions.json"]) for r in records}
        sizes = [s for s in self.scorers if isinstance(s, Size)]
        looked = any(s.pixels for s in self.scorers) or not all(
            s.knows(facts[k]) for s in sizes for k in keys
        )
        data = (r.members["image"] for r in images.read(shard, keys, ("image",))) if looked else None
        for key in keys:
            encoded = next(data) if data is not None else None
            yield Subject(key=key, facts=facts[key], data=encoded, captions=captions.get(key, ()))


def _chunks(subjects: Iterable[Subject]) -> Iterator[list[Subject]]:
    chunk: list[Subject] = []
    size = 0
    for subject in subjects:
        chunk.append(subject)
        size += len(subject.data or b"")
        if len(chunk) == _CHUNK or size >= _BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _add(
    found: Sequence[list[Scores | Unscored]], said: Sequence[Scores | Unscored], config: ScorerConfig
) -> None:
    """Adds a scorer's answers to those of the scorers before."""
    for answers, one in zip(found, said, strict=True):
        answers.append(Unscored(f"{config.kind}: {one.why}") if isinstance(one, Unscored) else one)


def _sample(key: str, said: Sequence[Scores | Unscored]) -> Sample:
    scores: Scores = {}
    for one in said:
        if isinstance(one, Unscored):
            return Sample(key=key, reject=UNSCORED, meta={UNSCORED: one.why})
        if twice := sorted(scores.keys() & one.keys()):
            raise ValueError(f"Two scorers give {', '.join(twice)}: set the `name` of one of them.")
        scores |= one
    return Sample(key=key, members={"scores.json": canonical(scores)}, meta=scores)
