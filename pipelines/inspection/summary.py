"""A dataset in numbers, from its indexes alone: counts, histograms, classes, scores, rejects and examples."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.inspection.histogram import Histogram
from pipelines.inspection.thing import Sources, Thing, indices
from pipelines.shards import ShardIndex

EXAMPLES = 5
"""Sources named for each reason."""
SAMPLED = 4096
"""Values of a score of which its quantiles are told."""
CLASSES = 2000
"""Labels told apart; where there are more they are no classes."""
NO_SCORES = {
    "width",
    "height",
    "original_width",
    "original_height",
    "row",
    "weight",
    "index",
    "keep",
    "place",
}


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A row chosen for the contact sheet."""

    shard: str
    row: int
    key: str
    label: str


@dataclass
class Quantiles:
    """Of a number in the rows' facts, from as many of them, chosen by their keys, as fit in memory."""

    count: int = 0
    low: float = math.inf
    high: float = -math.inf
    chosen: list[tuple[float, float]] = field(default_factory=list)

    def add(self, value: float, chance: float) -> None:
        self.count += 1
        self.low, self.high = min(self.low, value), max(self.high, value)
        if len(self.chosen) < SAMPLED:
            heapq.heappush(self.chosen, (-chance, value))
        elif -chance > self.chosen[0][0]:
            heapq.heapreplace(self.chosen, (-chance, value))

    def at(self, share: float) -> float:
        values = sorted(value for _, value in self.chosen)
        return values[min(int(share * len(values)), len(values) - 1)]

    def as_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "min": self.low,
            **{f"p{round(100 * share)}": self.at(share) for share in (0.05, 0.5, 0.95)},
            "max": self.high,
        }


@dataclass
class Summary:
    """What `summarise` finds."""

    splits: dict[str, Counter[str]] = field(default_factory=dict)
    """Split -> samples, rejected, dropped, shards."""
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names in the source."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Why rows were not kept -> how many."""
    histograms: dict[str, Histogram] = field(default_factory=dict)
    classes: Counter[str] = field(default_factory=Counter)
    scores: dict[str, Quantiles] = field(default_factory=dict)
    picks: list[Pick] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return sum(split["samples"] for split in self.splits.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "splits": {name: dict(counts) for name, counts in self.splits.items()},
            "samples": self.samples,
            "rejects": {
                reason: {"count": count, "examples": self.examples.get(reason, [])}
                for reason, count in self.reasons.most_common()
            },
            "dropped": dict(self.dropped),
            "histograms": {name: h.as_json() for name, h in self.histograms.items() if h.total},
            "classes": dict(self.classes.most_common()),
            "scores": {name: q.as_json() for name, q in self.scores.items()},
        }


def summarise(thing: Thing, *, split: str | None = None, seed: int = 0, pictures: int = 40) -> Summary:
    """Reads the index of each shard once.

    Raises:
        ValueError: there is no such split.
    """
    dataset, sources, found = thing.dataset, Sources(thing), Summary()
    if split is not None and split not in dataset.splits:
        raise ValueError(f"{thing.reference} has no split {split!r}; it has {', '.join(dataset.splits)}.")
    found.histograms = {
        "size": Histogram("Size", "px, the root of width times height", "log"),
        "aspect": Histogram("Aspect", "width to height, the nearest", "aspect"),
        "caption": Histogram("Caption length", "characters"),
    }
    ids = {hashlib.sha256(str(n).encode()).hexdigest(): name for n, name in enumerate(dataset.classes)}
    best: list[tuple[float, str, Pick]] = []
    for index in indices(dataset, split):
        counts = found.splits.setdefault(index.info.split, Counter(samples=0, rejected=0))
        counts["shards"] += 1
        lacking: dict[str, list[int]] = {}
        for n, key in enumerate(index.keys):
            reason = index.reasons[n]
            if reason == "dropped":
                counts["dropped"] += 1
                found.dropped[str(index.meta[n].get("dropped") or "dropped")] += 1
            elif reason:
                counts["rejected"] += 1
                found.reasons[reason] += 1
                if found.reasons[reason] <= EXAMPLES:
                    lacking.setdefault(reason, []).append(n)
            else:
                counts["samples"] += 1
                chance = _chance(seed, key)
                _facts(found, index, n, ids, chance)
                if len(best) < pictures or (best and -chance > best[0][0]):
                    label = _label(index, n, ids)
                    entry = (-chance, key, Pick(shard=index.info.name, row=n, key=key, label=label))
                    (heapq.heappush if len(best) < pictures else heapq.heapreplace)(best, entry)
        for reason, rows in lacking.items():
            found.examples.setdefault(reason, []).extend(sources.of(index, rows))
    found.picks = [pick for *_, pick in sorted(best, key=lambda entry: entry[1])]
    if len(found.classes) > CLASSES:
        found.classes.clear()
    return found


def rejected(thing: Thing, reason: str, split: str | None = None) -> list[tuple[str, str, str]]:
    """Source, key and shard of each sample that was rejected for this reason (or dropped for it).

    Raises:
        ValueError: there is none.
    """
    sources, found, known = Sources(thing), [], set[str]()
    for index in indices(thing.dataset, split):
        whys = [
            str(index.meta[n].get("dropped") or r) if r in (None, "dropped") else r
            for n, r in enumerate(index.reasons)
        ]
        known |= {why for why in whys if why != "None"}
        rows = [n for n, why in enumerate(whys) if why == reason]
        if rows:
            names = sources.of(index, rows)
            found += [(name, index.keys[n], index.info.name) for name, n in zip(names, rows, strict=True)]
    if not found:
        said = f"the reasons are {', '.join(sorted(known))}" if known else "nothing was rejected"
        raise ValueError(f"{thing.reference} has no sample with the reason {reason!r}: {said}.")
    return found


def _facts(found: Summary, index: ShardIndex, n: int, ids: Mapping[str, str], chance: float) -> None:
    meta = index.meta[n]
    width, height = meta.get("width"), meta.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        found.histograms["size"].add(math.sqrt(width * height))
        found.histograms["aspect"].add(1000 * width / height)
    text, caption = meta.get("text"), index.member(n, "txt")
    if caption:
        found.histograms["caption"].unit = "bytes of UTF-8"
        found.histograms["caption"].add(caption[1])
    elif isinstance(text, str):
        found.histograms["caption"].add(len(text))
    label = _class(index, n, ids)
    if label and len(found.classes) <= CLASSES:
        found.classes[label] += 1
    if meta.get("dropped"):
        found.dropped[str(meta["dropped"])] += 1
    for name, value in meta.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if number and name not in NO_SCORES:
            found.scores.setdefault(name, Quantiles()).add(float(value), chance)


def _class(index: ShardIndex, n: int, ids: Mapping[str, str]) -> str:
    """The label; by the digest of the `cls` member, so that no byte of it need be read."""
    span = index.member(n, "cls")
    return ids.get(span[2], "") if span and ids else str(index.meta[n].get("label") or "")


def _label(index: ShardIndex, n: int, ids: Mapping[str, str]) -> str:
    meta = index.meta[n]
    return _class(index, n, ids) or str(meta.get("text") or meta.get("title") or index.keys[n])


def _chance(seed: int, key: str) -> float:
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
