"""Scores to a `keep` column: thresholds, set as often as wanted without scoring again."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pipelines.scorers.thresholds import Limits, Threshold, histogram
from pipelines.shards import ShardIndex, read_index
from pipelines.stage import DROPPED, KEEP, Input, Inputs, Row, Sample, ShardPlan, ShardStage

if TYPE_CHECKING:
    from pipelines.dataset import Dataset

SCORES = "scores.json"
UNSCORED = "unscored"
TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class Filter(ShardStage):
    """Says which samples are kept: those have a member `keep`, the others the reason in their index.

    It reads indexes alone, never an image. A sample that a scorer could not score, or that has none of the
    scores asked for, is dropped as `unscored`. Stages that take a `keep` pass over what is dropped.
    """

    version: ClassVar[int] = 1
    primary: ClassVar[str] = "scores"

    scores: Annotated[tuple[str, ...], Input("dataset", (SCORES, KEEP))]
    """The stages that made the scores: `score`, and `deduplicate` or another `filter`, which drop on their
    own account."""
    images: Annotated[str | None, Input("dataset", ("cls",))] = None
    """Whose labels the counts are told by."""
    keep: Mapping[str, Threshold] = field(default_factory=dict)
    """By a score's name, what it must be: `{sharpness: {min: 40}, nsfw: {max: 0.2}, aesthetic: {top: 0.8}}`.
    A dropped sample names the first of them that it fails, in the order of the alphabet: the order of a
    recipe's lines changes nothing."""
    splits: tuple[str, ...] = ()
    """Splits that are filtered, all if empty. Others are kept whole, so that a held-out set stays what it was
    and yet may hold what the model never saw."""

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError("filter needs at least one stage in `scores`.")

    def summary(self) -> str:
        return f"by {', '.join(sorted(self.keep))}" if self.keep else "what others drop"

    def plan(self, inputs: Inputs) -> list[ShardPlan]:
        """The first dataset's shards, each with the limits as numbers, taken from the training split once."""
        datasets: Sequence[Dataset] = inputs["scores"]
        for reference, dataset in zip(self.scores, datasets, strict=True):
            _check(reference, dataset)
        self._check_names(datasets)
        said = {name: limits.to_json() for name, limits in self._limits(datasets).items()}
        return [
            ShardPlan(name=shard.name, split=shard.split, count=shard.samples, data={"limits": said})
            for shard in datasets[0].shards
        ]

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        indexes = _indexes(inputs["scores"], shard.name, self.scores)
        limits = repr(sorted(shard.data["limits"].items()))
        rows = []
        for n, key in enumerate(indexes[0].keys):
            said = [index.reasons[n] or "" for index in indexes]
            reject = next((reason for reason in said if reason not in ("", UNSCORED, DROPPED)), None)
            reads = [d for index in indexes for d in index.digests(n, (SCORES, KEEP))]
            reads += [*said, *(str(index.meta[n].get(DROPPED, "")) for index in indexes), limits]
            rows.append(Row(key=key, reads=() if reject else tuple(reads), reject=reject))
        return rows

    def bytes_needed(self, inputs: Inputs) -> int:
        return 2048 * sum(shard.samples for shard in inputs["scores"][0].shards)

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        datasets = inputs["scores"]

        def choose(shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
            indexes = _indexes(datasets, shard.name, self.scores)
            place = {key: n for n, key in enumerate(indexes[0].keys)}
            limits = {name: Limits.from_json(said) for name, said in shard.data["limits"].items()}
            for row in rows:
                if row.reject:
                    yield Sample(key=row.key, reject=row.reject)
                    continue
                why = (
                    self._why(datasets, indexes, place[row.key], limits)
                    if self._filters(shard.split)
                    else None
                )
                if why is None:
                    yield Sample(key=row.key, members={KEEP: b"1"})
                else:
                    yield Sample(key=row.key, meta={DROPPED: why})

        return choose

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        """What each rule drops, alone and in turn, by split and class, and how the scores lie."""
        datasets = inputs["scores"]
        limits = {
            name: Limits.from_json(said)
            for name, said in (self.plan(inputs)[0].data["limits"] if dataset.shards else {}).items()
        }
        values = {name: array("d") for name in self.keep}
        alone, first = Counter[str](), Counter[str]()
        splits: dict[str, Counter[str]] = {}
        classes: dict[str, Counter[str]] = {}
        for shard in dataset.shards:
            indexes = _indexes(datasets, shard.name, self.scores)
            mine = read_index(dataset.storage, shard.name)
            labels = _labels(inputs.get("images"), shard.name, mine)
            split = splits.setdefault(shard.split, Counter())
            for n in range(len(mine)):
                if mine.reasons[n] is not None:
                    continue
                why = mine.meta[n].get(DROPPED)
                outcome = "kept" if why is None else DROPPED
                split[outcome] += 1
                if labels and labels[n] is not None:
                    classes.setdefault(str(labels[n]), Counter())[outcome] += 1
                if why is not None:
                    first[why] += 1
                scores = _scores(indexes, n)
                for name in self.keep:
                    if name in scores:
                        values[name].append(scores[name])
                        if self._filters(shard.split) and not limits[name].keeps(scores[name]):
                            alone[name] += 1
        kept = sum(count["kept"] for count in splits.values())
        if not kept and splits:
            raise ValueError(
                f"filter keeps none of {sum(first.values())} samples "
                f"({', '.join(f'{n} {why}' for why, n in first.most_common())}): loosen its thresholds."
            )
        rules = {
            name: {**limits[name].to_json(), "alone": alone[name], "first": first[name], **histogram(of)}
            for name, of in values.items()
        }
        others = {why: n for why, n in sorted(first.items()) if why not in rules}
        return {
            "statistics": {
                "rules": rules,
                "others": others,
                "splits": {name: _counts(count) for name, count in sorted(splits.items())},
                "classes": {name: _counts(count) for name, count in sorted(classes.items())},
            },
            "told": _told(first, splits),
        }

    def _filters(self, split: str) -> bool:
        return not self.splits or split in self.splits

    def _check_names(self, datasets: Sequence[Dataset]) -> None:
        """`ValueError` for a score that none of the stages gave: it is misspelt."""
        known = {
            name for dataset in datasets for name in dataset.manifest.get("statistics", {}).get("scores", {})
        }
        if unknown := sorted(set(self.keep) - known):
            there = ", ".join(sorted(known)) or "none"
            raise ValueError(f"filter: no sample has the score {', '.join(unknown)}; there are {there}.")
        if wrong := sorted(set(self.splits) - set(datasets[0].splits)):
            raise ValueError(
                f"filter: there is no split {', '.join(wrong)}; there are {', '.join(datasets[0].splits)}."
            )

    def _limits(self, datasets: Sequence[Dataset]) -> dict[str, Limits]:
        """Shares are taken of the training split's scores, of all where there is no such split."""
        relative = [name for name, threshold in self.keep.items() if threshold.relative]
        values = {name: array("d") for name in relative}
        splits = datasets[0].splits
        for shard in datasets[0].shards if relative else ():
            if shard.split == TRAIN or TRAIN not in splits:
                indexes = _indexes(datasets, shard.name, self.scores)
                for n in range(len(indexes[0])):
                    scores = _scores(indexes, n)
                    for name in relative:
                        if name in scores:
                            values[name].append(scores[name])
        return {name: threshold.limits(values.get(name, ())) for name, threshold in self.keep.items()}

    def _why(
        self,
        datasets: Sequence[Dataset],
        indexes: Sequence[ShardIndex],
        n: int,
        limits: Mapping[str, Limits],
    ) -> str | None:
        """Why row `n` is dropped; None if it is kept."""
        for dataset, index in zip(datasets, indexes, strict=True):
            if index.reasons[n] == DROPPED or (_gate(dataset) and index.member(n, KEEP) is None):
                return str(index.meta[n].get(DROPPED, DROPPED))
        if any(index.reasons[n] == UNSCORED for index in indexes):
            return UNSCORED
        scores = _scores(indexes, n)
        for name in sorted(self.keep):
            if name not in scores:
                return UNSCORED
            if not limits[name].keeps(scores[name]):
                return name
        return None


def _gate(dataset: Dataset) -> bool:
    """Whether it drops on its own account; also where it drops all, and so has no column."""
    return KEEP in dataset.columns or dataset.manifest.get("stage") in ("deduplicate", "filter")


def _check(reference: str, dataset: Dataset) -> None:
    if not _gate(dataset) and SCORES not in dataset.columns and dataset.manifest.get("stage") != "score":
        raise ValueError(f"filter: {reference} has neither scores nor a `keep` column: name a score stage.")


def _indexes(datasets: Sequence[Dataset], shard: str, references: Sequence[str]) -> list[ShardIndex]:
    """Read anew, and not kept: a driver goes through all shards."""
    names = [{s.name for s in dataset.shards} for dataset in datasets]
    if any(shard not in found for found in names):
        raise ValueError(f"{', '.join(references)} have different shards: they are not of one line.")
    indexes = [read_index(dataset.storage, shard, dataset.info(shard)) for dataset in datasets]
    if any(index.keys != indexes[0].keys for index in indexes):
        raise ValueError(f"{', '.join(references)} differ in the rows of shard {shard}: not of one line.")
    return indexes


def _scores(indexes: Sequence[ShardIndex], n: int) -> dict[str, float]:
    """Of row `n`, from the datasets that scored it; `ValueError` if two gave one of the same name."""
    scores: dict[str, float] = {}
    for index in indexes:
        if SCORES in index.members and index.members[SCORES][n] is not None:
            if twice := sorted(scores.keys() & index.meta[n].keys()):
                raise ValueError(
                    f"filter: two of `scores` give {', '.join(twice)}: set the `name` of one of the scorers."
                )
            scores |= index.meta[n]
    return scores


def _labels(images: Dataset | None, shard: str, mine: ShardIndex) -> list[Any]:
    if images is None:
        return []
    index = images.index(shard)
    if index.keys != mine.keys:
        raise ValueError(f"filter: images and scores differ in the rows of shard {shard}: not of one line.")
    return [meta.get("label") for meta in index.meta]


def _counts(count: Counter[str]) -> dict[str, int]:
    return {"kept": count["kept"], DROPPED: count[DROPPED]}


def _told(first: Counter[str], splits: Mapping[str, Counter[str]]) -> str:
    """One line for who runs it: "1,400 of 1,599 kept (train 1,250 of 1,420, ...); dropped: 120 sharpness"."""
    each = [f"{name} {count['kept']:,} of {count.total():,}" for name, count in sorted(splits.items())]
    kept, total = sum(c["kept"] for c in splits.values()), sum(c.total() for c in splits.values())
    why = ", ".join(f"{n:,} {name}" for name, n in first.most_common())
    return f"{kept:,} of {total:,} kept ({', '.join(each)})" + (f"; dropped: {why}" if why else "")
