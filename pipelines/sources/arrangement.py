"""Which inputs there are, in which split and which shard: decided over all, kept in files for workers."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage import Storage
from pipelines.buckets import Buckets, Size
from pipelines.duplicates.methods import Semantic
from pipelines.shards import canonical
from pipelines.sources.entries import ranges
from pipelines.sources.long_tail import LongTail, thinned
from pipelines.sources.sightings import GROUP, packed, table
from pipelines.sources.split import ORDER, Split, assign, leaks, shards_of
from pipelines.sources.survey import Survey
from pipelines.stage import jsonable

_NARROW = ("place", "key", "digest", "split", "label", "reject", "fault", "text", "hash",
           "mirrored", "width", "height", "look_file", "look")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How inputs are to be arranged."""

    split: Split
    seed: int
    samples_per_shard: int
    pictures: bool
    """Whether perceptual hashes are compared."""
    long_tail: LongTail | None = None
    unseen: tuple[str, ...] = ()
    buckets: Buckets | None = None

    @property
    def near(self) -> Semantic | None:
        """How copies are found by a network, where they are."""
        return self.split.near if self.pictures else None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The inputs of one shard: those of a split whose key's place is in a range."""

    name: str
    split: str
    count: int
    low: int
    high: int
    """Exclusive."""
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    place: Storage
    shards: tuple[Shard, ...]
    left_out: Mapping[str, Mapping[str, int]]
    """Field that leaves images out (`long_tail`, `unseen`) -> class -> how many."""
    statistics: Mapping[str, Any]
    sizes: Mapping[Size, Size]
    """Size by its shape -> size that an image is brought to; empty without buckets."""
    warning: str | None


def arrange(survey: Survey, wish: Wish) -> Arrangement:
    """Decides, or finds what was decided for the same survey and wish.

    Raises:
        ValueError: the wish names classes that the source does not have.
    """
    name = hashlib.sha256(canonical([3, survey.name, jsonable(wish)])).hexdigest()[:24]
    place = survey.place.folder("arranged").folder(name)
    if not place.exists("arrangement.json"):
        place.put_if_absent("arrangement.json", canonical(_decided(survey, wish, place)))
    said = json.loads(place.read("arrangement.json"))
    shards = tuple(
        Shard(name=n, split=s, count=c, low=low, high=high, files=tuple(f))
        for n, s, c, low, high, f in said["shards"]
    )
    return Arrangement(
        place=place,
        shards=shards,
        left_out=said["left_out"],
        statistics=said["statistics"],
        sizes={tuple(shape): tuple(size) for shape, size in said["sizes"]},
        warning=said["warning"],
    )


def rows(place: Storage, shard: Mapping[str, Any], split: str) -> Iterator[dict[str, Any]]:
    """The inputs of a shard, by key."""
    found = table(place, shard["files"], shard["low"], shard["high"])
    mine = found.filter(_equal(found.column("assigned"), split))
    for row in sorted(mine.to_pylist(), key=lambda row: row["key"]):
        yield {
            **row,
            "name": row["name"].decode("utf-8", "surrogateescape"),
            "where": json.loads(row["where"]),
            "facts": json.loads(row["facts"]),
        }


def _equal(column: Any, value: str) -> Any:
    import pyarrow.compute as pc

    return pc.equal(column, value)  # pyright: ignore[reportAttributeAccessIssue]


def _decided(survey: Survey, wish: Wish, place: Storage) -> dict[str, Any]:
    found = survey.table(_NARROW)
    columns = {name: found.column(name).to_pylist() for name in _NARROW if name != "place"}
    places = found.column("place").to_numpy()
    keys, digests = columns["key"], columns["digest"]
    groups = _groups(survey, wish, columns)
    stated = assign(keys, digests, columns["split"], groups, split=wish.split, seed=wish.seed)
    classes = survey.classes
    splits, left_out = stated.splits, {}
    if wish.unseen:
        splits = _unseen(wish.unseen, classes, columns["label"], splits)
        left_out["unseen"] = _count(classes, columns["label"], stated.splits, splits)
    if wish.long_tail:
        before = splits
        splits = _thinned(wish.long_tail, classes, columns, groups, splits)
        left_out["long_tail"] = _count(classes, columns["label"], before, splits)
    kept = [n for n, split in enumerate(splits) if split]
    near, exact = leaks([digests[n] for n in kept], [splits[n] for n in kept], [groups[n] for n in kept])
    number = {split: code for code, split in enumerate(ORDER)} | {"": -1}
    codes = np.array([number[split] for split in splits], dtype=np.int8)
    files = _write(survey, codes, place)
    labels = Counter(label for n in kept if (label := columns["label"][n]) is not None)
    statistics = {
        "labels": dict(sorted(labels.items())),
        "captioned": sum(columns["text"][n] for n in kept),
        "duplicates": {"clusters": stated.clusters, "images": stated.clustered},
        "leaks": {"near": near if wish.pictures else None, "exact": exact},
        "ignored": survey.ignored,
    }
    shards = [
        [*shard, [file for file, low, high in files if low < shard[4] and shard[3] < high]]
        for shard in shards_of(places, codes, wish.samples_per_shard)
    ]
    sizes, warning = [], None
    if wish.buckets:
        counts = _shapes(wish.buckets, columns, splits)
        sizes = [[list(shape), list(size)] for shape, size in wish.buckets.merged(counts).items()]
        warning = wish.buckets.warning(counts)
    told = {"left_out": left_out, "statistics": statistics, "sizes": sizes, "warning": warning}
    return {**told, "shards": shards}


def _groups(survey: Survey, wish: Wish, columns: Mapping[str, Sequence[Any]]) -> list[int]:
    """Cluster of near-duplicates of each image, as the smallest number in it."""
    from pipelines.duplicates import Look, groups
    from pipelines.sources.looks import gathered

    distance = wish.split.distance if wish.pictures else None
    looks = [
        None if seen is None or distance is None else Look(seen, mirrored)
        for seen, mirrored in zip(columns["hash"], columns["mirrored"], strict=True)
    ]
    reach = -1 if distance is None else distance
    if not wish.near:
        return groups(columns["digest"], looks, reach)
    where = [
        None if file is None else (file, n)
        for file, n in zip(columns["look_file"], columns["look"], strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="latentmill-") as folder:
        features, thumbnails = gathered(survey.place, where, Path(folder))
        return groups(
            columns["digest"], looks, reach, near=wish.near, features=features, thumbnails=thumbnails
        )


def _shapes(buckets: Buckets, columns: Mapping[str, Sequence[Any]], splits: Sequence[str]) -> dict[Size, int]:
    """How many training images are of each size's shape, by their headers."""
    sides = zip(columns["width"], columns["height"], columns["reject"], columns["fault"], splits, strict=True)
    shapes = Counter(
        (width, height)
        for width, height, reject, fault, split in sides
        if split == "train" and not reject and not fault and width
    )
    counts: Counter[Size] = Counter()
    for (width, height), count in shapes.items():
        counts[buckets.nearest(width, height)] += count
    return dict(counts)


def _write(survey: Survey, codes: np.ndarray, place: Storage) -> list[tuple[str, int, int]]:
    """The inputs with their split, in ranges of their keys' places; (file, low, high) each."""
    import pyarrow as pa

    made = []
    places = survey.table(["place"]).column("place").to_numpy()
    for part in ranges(survey.count, "rows"):
        within = (places >= part.low) & (places <= part.high - 1)
        found = survey.table(None, part.low, part.high)
        named = pa.array([ORDER[code] if code >= 0 else None for code in codes[within].tolist()], pa.string())
        found = found.append_column("assigned", named)
        found = found.filter(found.column("assigned").is_valid()).sort_by("place")
        place.put_if_absent(part.name, packed(found, GROUP // 8))
        made.append((part.name, part.low, part.high))
    return made


def _unseen(
    names: Sequence[str], classes: Sequence[str], labels: Sequence[str | None], splits: Sequence[str]
) -> list[str]:
    """Only the test split keeps these classes; "" for what is left out."""
    if unknown := sorted(set(names) - set(classes)):
        known = ", ".join(classes) or "no labels"
        raise ValueError(f"unseen names {unknown[0]!r}, and the source has {known}.")
    return [
        split if split == "test" or label not in names else ""
        for split, label in zip(splits, labels, strict=True)
    ]


def _thinned(
    tail: LongTail,
    classes: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    groups: Sequence[int],
    splits: Sequence[str],
) -> list[str]:
    if not classes:
        raise ValueError("long_tail falls from class to class, and the source gives no labels: leave it out.")
    ids = {name: n for n, name in enumerate(classes)}
    there = [n for n, split in enumerate(splits) if split]
    labels = [columns["label"][n] for n in there]
    thin = thinned(
        tail,
        [columns["key"][n] for n in there],
        [None if label is None else ids[label] for label in labels],
        [splits[n] for n in there],
        [groups[n] for n in there],
        usable=[columns["reject"][n] is None and columns["fault"][n] is None for n in there],
        classes=len(classes),
    )
    result = list(splits)
    for n, split in zip(there, thin, strict=True):
        result[n] = split
    return result


def _count(
    classes: Sequence[str], labels: Sequence[str | None], before: Sequence[str], after: Sequence[str]
) -> dict[str, int]:
    """How many of each class were left out."""
    counts = dict.fromkeys(classes, 0)
    for label, was, now in zip(labels, before, after, strict=True):
        if label is not None and was and not now:
            counts[label] += 1
    return counts
