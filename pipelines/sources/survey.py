"""A source read through: listed, hashed and joined by many tasks, each of which leaves a file behind.

What a task has left is not done again while its part of the source is unchanged; all of it may be deleted at
any time. The driver sees counts and digests, never names.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from cluster.resources import Resources, settle
from cluster.storage import Storage, cache_folder
from pipelines.places import at_hand, remote
from pipelines.shards import canonical
from pipelines.sources.entries import Joined, Joiner, ranges
from pipelines.sources.listing import Entry, Listing, ordered
from pipelines.sources.sightings import Merger, Question, Seen, Spotter, file_of, parted, stem_of, table
from pipelines.sources.source import Part, Source
from pipelines.stage import Tell, TooMany, jsonable

if TYPE_CHECKING:
    from cluster.mapping import Executor

MERGED = 256
"""Files of what was seen that are made one, where there are more."""
SMALL = 64
"""Parts (of some 500 files) that are read while planning, by this machine alone; more wait for the run."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is known of a source once it was read through. The inputs themselves lie in files."""

    place: Storage
    name: str
    """Of what was seen: another one wherever a part of the source has changed."""
    files: tuple[str, ...]
    """Inputs, in ranges of their keys."""
    digest: str
    """Of the inputs' bytes and what is said of them."""
    count: int
    bytes: int
    ignored: int
    captioned: int
    labels: Mapping[str, int]
    """Class name -> how many images."""

    @functools.cached_property
    def classes(self) -> list[str]:
        return ordered(self.labels)

    @functools.cached_property
    def ids(self) -> Mapping[str, int]:
        """Class name -> id."""
        return {name: n for n, name in enumerate(self.classes)}

    def table(self, columns: Sequence[str] | None = None, low: int = 0, high: int = 1 << 64) -> Any:
        """Inputs whose key's place is from `low` to below `high`, in the order of the files."""
        return table(self.place, self.files, low, high, list(columns) if columns else None)

    def entries(self) -> Iterator[Entry]:
        for file in self.files:
            for row in table(self.place, [file]).to_pylist():
                yield Entry(
                    name=row["name"].decode("utf-8", "surrogateescape"),
                    key=row["key"],
                    where=json.loads(row["where"]),
                    digest=row["digest"],
                    facts=json.loads(row["facts"]),
                    split=row["split"],
                    **{name: row[name] for name in ("reject", "fault", "kind", "width", "height")},
                )


def survey(
    source: Source,
    question: Question,
    *,
    store: Storage | None = None,
    executor: Executor | None = None,
    tell: Tell = lambda done, of: None,
    most: int | None = None,
) -> Survey:
    """Reads a source through; what is known of it already is not read again.

    Args:
        store: keeps what was seen, for all machines; this machine's cache folder without.
        executor: where tasks run; on this machine's threads without.
        most: parts that may have to be read.

    Raises:
        TooMany: more than `most` parts have to be read.
        ValueError: the source is not there, or metadata in it cannot be read.
    """
    place = _place(source, store)
    call = _Tasks(executor)
    parts = _listed(source, place, call, most)
    whole = hashlib.sha256(canonical([question.name, [[p.name, p.stamp] for p in parts]])).hexdigest()[:24]
    told = f"inputs/{whole}/survey.json"
    if place.exists(told):
        said = json.loads(place.read(told))
        return Survey(place=place, name=whole, **{**said, "files": tuple(said["files"])})
    held = place.list(f"seen/{question.name}/")
    missing = sum(file_of(question, part) not in set(held) for part in parts) if most is not None else 0
    if most is not None and missing > most:
        raise TooMany(f"{source.path} has {missing} parts that were not read yet.")
    earlier = {name.rpartition("-")[0]: name for name in held}
    wanted = {stem_of(question, part) for part in parts}
    spotter = Spotter(
        source=source, question=question, place=place,
        earlier={stem: name for stem, name in earlier.items() if stem in wanted},
    )  # fmt: skip
    seen: list[Seen | None] = [None] * len(parts)
    for done, (n, one) in enumerate(call(spotter, parts, f"survey {source.path.name}"), start=1):
        seen[n] = one
        tell(done, len(parts))
    result = _joined(source, place, whole, [one for one in seen if one], call)
    place.put_if_absent(
        told,
        canonical(
            {f.name: getattr(result, f.name) for f in fields(result) if f.name not in ("place", "name")}
        ),
    )
    return result


def listing(source: Source) -> Listing:
    """All inputs at once, by name, with what reading their headers says."""
    found = survey(source, Question(max_bytes=64_000_000, max_pixels=64_000_000))
    entries = sorted(found.entries(), key=lambda entry: entry.name.encode("utf-8", "surrogateescape"))
    return Listing(entries=entries, ignored=found.ignored, digest=found.digest)


@dataclass(frozen=True)
class _Tasks:
    """Calls a factory's function on items: on the executor, or on threads of this process."""

    executor: Executor | None

    @property
    def apart(self) -> bool:
        """Whether tasks run elsewhere."""
        return self.executor is not None and self.executor.parallel

    def __call__(self, factory: Any, items: Sequence[Any], name: str) -> Iterator[tuple[int, Any]]:
        if self.apart and self.executor:
            resources = settle(Resources(), self.executor.capacity(), shape="pool", accelerated=False)
            yield from self.executor.map(factory, items, resources=resources, name=name, describe=_describe)
            return
        function = factory()
        # Hashing, waiting for a disk and for a child all leave the interpreter free for other threads.
        threads = ThreadPoolExecutor(os.cpu_count() or 1)
        try:
            yield from enumerate(threads.map(function, items))
        finally:
            threads.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Splitter:
    """Opens what lists folders: the executor's factory."""

    source: Source
    place: Storage | None
    """Where what a part is made of is left for the task that reads it; the driver is given all without."""

    def __call__(self) -> Any:
        return self.split

    def split(self, part: Part) -> list[Part]:
        found = self.source.split(part)
        if self.place is None:
            return found
        return [parted(one, self.place) if one.leaf else one for one in found]


def _listed(source: Source, place: Storage, call: _Tasks, most: int | None) -> list[Part]:
    """All leaves, by name; listed level by level, each folder by a task."""
    leaves: list[Part] = []
    splitter = _Splitter(source, place if call.apart else None)
    waiting = source.roots()
    while waiting:
        folders = [part for part in waiting if not part.leaf]
        leaves += [part for part in waiting if part.leaf]
        if most is not None and len(folders) > most:
            raise TooMany(f"{source.path} has more folders than are listed while planning.")
        waiting = [part for _, found in call(splitter, folders, "list") for part in found]
    leaves.sort(key=lambda part: part.name)
    for one, other in itertools.pairwise(leaves):
        assert one.name != other.name, f"two parts are named {one.name!r}"
    return leaves


def _joined(source: Source, place: Storage, name: str, seen: list[Seen], call: _Tasks) -> Survey:
    apart = {split for one in seen for split in one.splits}
    splits = len(apart) > 1
    labels = {label for one in seen for label in (one.labels_apart if splits else one.labels)}
    stated = any(one.facts for one in seen)
    by_folder = getattr(source, "labels", "none") == "folders" and not stated and len(labels) > 1
    files = [one.file for one in seen]
    if len(files) > MERGED:
        # A range reads a piece of every file, so that with many files there would be far more pieces.
        groups = [files[start : start + MERGED] for start in range(0, len(files), MERGED)]
        merging = call(Merger(place=place, folder=f"merged/{name}"), list(enumerate(groups)), "merge")
        files = [file for _, file in sorted(merging, key=lambda pair: pair[0])]
    joiner = Joiner(place=place, seen=tuple(files), labels=by_folder, splits=splits)
    pieces = ranges(sum(one.rows for one in seen), f"inputs/{name}")
    found: list[Joined] = [
        joined for _, joined in sorted(call(joiner, pieces, "join"), key=lambda pair: pair[0])
    ]
    digest = found[0].digest
    if len(found) > 1:
        digest = hashlib.sha256("".join(one.digest for one in found).encode()).hexdigest()
    counts: Counter[str] = Counter()
    for one in found:
        counts.update(one.labels)
    return Survey(
        place=place,
        name=name,
        files=tuple(one.file for one in found),
        digest=digest,
        count=sum(one.count for one in found),
        bytes=sum(one.bytes for one in found),
        ignored=sum(one.ignored for one in found),
        captioned=sum(one.captioned for one in found),
        labels=dict(counts),
    )


def _place(source: Source, store: Storage | None) -> Storage:
    """Where a source's survey lies: by the source's path and fields."""
    storage = remote(source.path)
    where = storage.url if storage else str(at_hand(source.path).absolute())
    said = [where, jsonable(source)]
    name = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:20]
    top = store.folder("cache") if store is not None else Storage.at(cache_folder())
    return top.folder("sources").folder(name)


def _describe(item: Any) -> str:
    return str(getattr(item, "name", item))[-60:]
