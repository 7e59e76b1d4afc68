"""From a pile of images to shards: each is decoded, checked, brought to one size, and put into a split."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipelines.places import at_hand
from pipelines.shards import canonical
from pipelines.sources import Entry, Listing, Source
from pipelines.sources.fit import Format, Resize
from pipelines.sources.long_tail import LongTail, thinned
from pipelines.sources.split import Assignment, Split, assign, leaks, shard_names
from pipelines.stage import Inputs, Row, Sample, ShardPlan, ShardStage, added

_LOOKS = 256
"""Inputs that one child looks at while planning."""
_OUTPUT = 1 << 28
"""Bytes of samples that a worker holds at most."""


@dataclass(frozen=True, kw_only=True)
class Ingest(ShardStage):
    """Images from a folder, a zip archive or IDX files, with what is known of them, as a dataset.

    Members: the image (jpg, png or webp), `json` with the text, label and whatever else the source says, and
    `cls`, the label's id, where there is a label. Every input becomes a sample or a reject with its reason;
    what a long tail leaves out is counted, by class, in the manifest's `left_out`.
    """

    source: Source
    """Where the images are."""
    size: int = 64
    """Side of the samples, in px."""
    resize: Resize = "crop"
    """crop to the middle square, fit with background around, pad (fit, never enlarged), none (sizes stay)."""
    background: str = "#ffffff"
    """Colour that shows through transparency and fills up, as #rrggbb."""
    format: Format = "webp"
    """Lossless format of images that change; those that stay as they are keep their bytes."""
    split: Split = Split()
    """Shares of validation and test."""
    seed: int = 0
    """Which images are held out."""
    long_tail: LongTail | None = added(None)
    """Keeps few of the training images, fewer from class to class; all if None."""
    unseen: tuple[str, ...] = added(())
    """Classes of which the test split alone keeps images: unknown to a model, for `detect` to find."""
    samples_per_shard: int = 1000
    """At most about so many; a split has a power of two of shards."""
    max_bytes: int = 64_000_000
    """Files above this are rejected unread."""
    max_pixels: int = 64_000_000
    """Images above this are rejected by their header, before they are decoded."""

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise ValueError(f"size is {self.size} px; it must be 8 to 4096.")
        if not re.fullmatch("#[0-9a-fA-F]{6}", self.background):
            raise ValueError(f'background is "{self.background}"; it must be a colour like "#ffffff".')
        for name in ("samples_per_shard", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def external(self) -> dict[str, str]:
        return {"source": self.source.digest()}

    def work(self) -> dict[str, Any]:
        # Which images there are, and how they are split and sharded, changes none of them.
        arranging = {"split", "seed", "samples_per_shard", "long_tail", "unseen"}
        return {"meaning": {k: v for k, v in self.meaning().items() if k not in arranging}}

    def bytes_needed(self, inputs: Inputs) -> int:
        # Three bytes a pixel is what lossless formats take of noise; what is not resized stays as it is.
        if self.resize == "none":
            place = at_hand(self.source.path)
            files = [place] if place.is_file() else place.rglob("*")
            return sum(path.stat().st_size for path in files if path.is_file())
        return len(self.source.listing().entries) * 3 * self.size**2

    def summary(self) -> str:
        way = {"crop": "cropped to", "fit": "fitted into", "pad": "padded to", "none": "as they are, not"}
        said = f"images of {self.source.path.name}, {way[self.resize]} {self.size} px"
        if self.long_tail:
            last = max(1, round(self.long_tail.head / self.long_tail.ratio))
            said += f", {self.long_tail.head:,} to {last:,} a class"
        if self.unseen:
            said += f", {' and '.join(self.unseen)} for the test alone"
        return said

    def plan(self, inputs: Inputs) -> list[ShardPlan]:
        survey = _survey(self, self.source.digest())
        shards: dict[str, list[dict[str, Any]]] = {}
        splits: dict[str, str] = {}
        for n in sorted(range(len(survey.keys)), key=lambda n: survey.keys[n]):
            entry = survey.listing.entries[n]
            label = entry.facts.get("label")
            row = {
                "key": survey.keys[n],
                "where": entry.where,
                "name": entry.name,
                "digest": entry.digest,
                "facts": dict(entry.facts),
                "cls": None if label is None else survey.ids[str(label)],
                "reject": survey.rejects[n],
            }
            shards.setdefault(survey.shards[n], []).append(row)
            splits[survey.shards[n]] = survey.assignment.splits[n]
        return [
            ShardPlan(name=name, split=splits[name], count=len(rows), data={"rows": rows})
            for name, rows in sorted(shards.items())
        ]

    def rows(self, inputs: Inputs, shard: ShardPlan) -> list[Row]:
        rows = []
        for row in shard.data["rows"]:
            said = hashlib.sha256(canonical([row["name"], row["facts"], row["cls"]])).hexdigest()
            reads = () if row["reject"] else (row["digest"], said)
            rows.append(Row(key=row["key"], reads=reads, data=row, reject=row["reject"]))
        return rows

    def open(self, inputs: Inputs) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        return functools.partial(_make, self)

    def finish(self, inputs: Inputs, dataset: Any) -> dict[str, Any]:
        from pipelines.sources.fit import codecs

        survey = _survey(self, self.source.digest())
        labels: dict[str, int] = {}
        for entry in survey.listing.entries:
            if (label := entry.facts.get("label")) is not None:
                labels[str(label)] = labels.get(str(label), 0) + 1
        found = survey.assignment
        left_out = {"left_out": survey.left_out} if survey.left_out else {}
        return {
            **left_out,
            "classes": list(survey.ids),
            "statistics": {
                "resolution": None if self.resize == "none" else self.size,
                "labels": dict(sorted(labels.items())),
                "captioned": sum("text" in entry.facts for entry in survey.listing.entries),
                "duplicates": {"clusters": found.clusters, "images": found.clustered},
                "leaks": {"near": found.leaks if self.source.pictures else None, "exact": found.exact_leaks},
                "ignored": survey.listing.ignored,
                "codecs": codecs(),
            },
        }


@dataclass(frozen=True, kw_only=True)
class _Survey:
    """What planning finds out; lists are parallel to the listing's entries."""

    listing: Listing
    """Without what is left out."""
    left_out: dict[str, dict[str, int]]
    """Field that leaves images out (`long_tail`, `unseen`) -> class -> how many."""
    keys: list[str]
    ids: Mapping[str, int]
    """Class name -> id, of the whole source."""
    rejects: list[str | None]
    groups: list[int]
    """Clusters of near-duplicates."""
    assignment: Assignment
    shards: list[str]


@functools.lru_cache(maxsize=2)
def _survey(stage: Ingest, digest: str) -> _Survey:
    """Lists the source, looks at what is new, decides on splits and shards. `digest` is for the cache."""
    from pipelines.duplicates import Look, clusters
    from pipelines.sources.listing import keys

    listing = stage.source.listing()
    if not listing.entries:
        raise ValueError(f"{stage.source.path} holds no images.")
    names = keys(listing.entries)
    looks: list[Look | None] = [None] * len(names)
    rejects = [entry.reject for entry in listing.entries]
    distance = stage.split.distance if stage.source.pictures else None
    if distance is not None:
        known = _look(stage, listing.entries)
        for n, entry in enumerate(listing.entries):
            seen = known.get(entry.digest, {})
            rejects[n] = rejects[n] or seen.get("reject")
            looks[n] = Look(seen["hash"], seen["mirrored"]) if "hash" in seen else None
    digests = [entry.digest for entry in listing.entries]
    groups = clusters(digests, looks, -1 if distance is None else distance)
    stated = [entry.split for entry in listing.entries]
    assignment = assign(names, digests, stated, groups, split=stage.split, seed=stage.seed)
    whole = _Survey(
        listing=listing,
        left_out={},
        keys=names,
        ids={name: n for n, name in enumerate(listing.classes)},
        rejects=rejects,
        groups=list(groups),
        assignment=assignment,
        shards=[],
    )
    survey = whole
    if stage.unseen:
        survey = _unseen(survey, stage.unseen)
    if stage.long_tail:
        survey = _thinned(survey, stage.long_tail)
    shards = shard_names(survey.keys, survey.assignment.splits, stage.samples_per_shard)
    return dataclasses.replace(survey, shards=shards)


def _unseen(whole: _Survey, classes: Sequence[str]) -> _Survey:
    unknown = sorted(set(classes) - set(whole.ids))
    if unknown:
        known = ", ".join(whole.ids) or "no labels"
        raise ValueError(f"unseen names {unknown[0]!r}, and the source has {known}.")
    kept = [
        split if split == "test" or str(entry.facts.get("label")) not in classes else ""
        for entry, split in zip(whole.listing.entries, whole.assignment.splits, strict=True)
    ]
    return _without("unseen", whole, kept)


def _thinned(whole: _Survey, tail: LongTail) -> _Survey:
    if not whole.ids:
        raise ValueError("long_tail falls from class to class, and the source gives no labels: leave it out.")
    splits = thinned(
        tail,
        whole.keys,
        [None if name is None else whole.ids[name] for name in _labels(whole)],
        whole.assignment.splits,
        whole.groups,
        usable=[reject is None for reject in whole.rejects],
        classes=len(whole.ids),
    )
    return _without("long_tail", whole, splits)


def _labels(survey: _Survey) -> list[str | None]:
    labels = [entry.facts.get("label") for entry in survey.listing.entries]
    return [None if label is None else str(label) for label in labels]


def _without(by: str, whole: _Survey, splits: Sequence[str]) -> _Survey:
    """Images whose split is "" left out, and counted by class; the others in their (maybe new) splits."""
    kept = [n for n, split in enumerate(splits) if split]
    left_out = dict.fromkeys(whole.ids, 0)
    for name, split in zip(_labels(whole), splits, strict=True):
        if name is not None and not split:
            left_out[name] += 1

    def of(values: Sequence[Any]) -> list[Any]:
        return [values[n] for n in kept]

    entries, groups = of(whole.listing.entries), of(whole.groups)
    near, exact = leaks([entry.digest for entry in entries], of(splits), groups)
    return dataclasses.replace(
        whole,
        listing=dataclasses.replace(whole.listing, entries=entries),
        left_out=whole.left_out | {by: left_out},
        keys=of(whole.keys),
        rejects=of(whole.rejects),
        groups=groups,
        assignment=dataclasses.replace(whole.assignment, splits=of(splits), leaks=near, exact_leaks=exact),
    )


def _look(stage: Ingest, entries: Sequence[Entry]) -> dict[str, Any]:
    """Digest -> what a child saw in it; kept as it goes, so that planning resumes and repeats nothing."""
    from pipelines.sources.seen import Seen
    from pipelines.sources.untrusted import in_child, look_at

    task = _task(stage)
    question = canonical(["look", 1, stage.background, stage.max_bytes, stage.max_pixels]).decode()
    with Seen(stage.source.path) as seen:
        known = seen.looks(question)
        new = {e.digest: e.where for e in entries if e.digest and not e.reject and e.digest not in known}
        items = [(where, digest) for digest, where in new.items()]
        batches = [items[start : start + _LOOKS] for start in range(0, len(items), _LOOKS)]
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            results = threads.map(lambda batch: in_child(look_at, task, batch), batches)
            for batch, found in zip(batches, results, strict=True):
                looks = {digest: look for (_, digest), look in zip(batch, found, strict=True)}
                seen.remember_looks(question, looks)
                known |= looks
    return known


def _task(stage: Ingest):
    from pipelines.sources.untrusted import Task

    return Task(
        # A child has no credentials to fetch it with.
        source=dataclasses.replace(stage.source, path=at_hand(stage.source.path)),
        background=stage.background,
        max_bytes=stage.max_bytes,
        max_pixels=stage.max_pixels,
        size=stage.size,
        resize=stage.resize,
        form=stage.format,
    )


def _make(stage: Ingest, shard: ShardPlan, rows: Sequence[Row]) -> Iterator[Sample]:
    from pipelines.sources.untrusted import in_child, make

    task = _task(stage)
    # What `none` gives is as large as the files are, so only a few are held at once.
    per_sample = 8_000_000 if stage.resize == "none" else 4 * stage.size**2
    chunk = max(8, _OUTPUT // per_sample)
    for start in range(0, len(rows), chunk):
        batch = [row for row in rows[start : start + chunk] if not row.reject]
        made = iter(in_child(make, task, [(row.data["where"], row.data["digest"]) for row in batch]))
        for row in rows[start : start + chunk]:
            yield Sample(key=row.key, reject=row.reject) if row.reject else _sample(row, next(made))


def _sample(row: Row, made: Mapping[str, Any]) -> Sample:
    from pipelines.sources.listing import printable
    from pipelines.sources.metadata import scalars

    if "reject" in made:
        return Sample(key=row.key, reject=made["reject"])
    sizes = {name: made[name] for name in ("width", "height", "original_width", "original_height")}
    facts = {**row.data["facts"], "file_name": printable(row.data["name"]), **sizes}
    members = {made["suffix"]: made["image"], "json": canonical(facts)}
    if row.data["cls"] is not None:
        members["cls"] = str(row.data["cls"]).encode()
    return Sample(key=row.key, members=members, meta=scalars(facts))
