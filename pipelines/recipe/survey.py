"""A look at any pile of images: what is there, what is said of it, and what is broken."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import Storage, cache_folder
from pipelines.places import URL, at_hand
from pipelines.recipe.drawing import Drawn, draw
from pipelines.recipe.placing import placed
from pipelines.recipe.sample import Sampled, Tally, estimated
from pipelines.sources import IdxSource, Source, TableSource
from pipelines.sources.columns import Columns
from pipelines.sources.header import header
from pipelines.sources.idx import IdxFiles
from pipelines.sources.listing import Entry
from pipelines.sources.source import Reader

BATCH = 200
"""Images that one disposable process looks at."""
SQUARE = 1.1
"""Longer over shorter side of an image that is as good as square."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a source holds. Where it was read in part, counts are those of that part, scaled up."""

    source: Source
    images: int
    """Inputs: image files, and what metadata or tables name."""
    exact: bool = True
    """Whether all was read, so that what is counted is so."""
    read: int = 0
    """Inputs that were come upon, and their headers read."""
    ignored: int
    """Files that are no images."""
    texts: int
    """Images with a caption, from metadata or a .txt beside them."""
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    """Images whose split the source states."""
    metadata: tuple[str, ...] = ()
    """What else metadata says of images."""
    columns: Columns | None = None
    """Of a table: which column is what."""
    looked: int = 0
    """Images that were decoded: all whose header is sound, or as many as time allowed, drawn at random."""
    kinds: Counter[str] = field(default_factory=Counter)
    sides: tuple[tuple[int, int], ...] = ()
    """(width, height) of the images that were decoded."""
    broken: tuple[tuple[str, str], ...] = ()
    """(name, reason code) of those that `ingest` will reject, of those that were read."""
    notes: tuple[str, ...] = ()
    """What else is to be told, a line each."""

    @property
    def classes(self) -> Counter[str]:
        """The labels, if they are few enough to tell anything of an image: five images each."""
        return self.labels if 5 * len(self.labels) <= max(10, sum(self.labels.values())) else Counter()

    @property
    def usable(self) -> int:
        """Images less those that are as broken as those that were read."""
        return self.images - round(self.images * len(self.broken) / max(1, self.read or self.images))

    @property
    def square(self) -> float:
        """Share of the images whose sides differ by less than a tenth; 1 where none was seen."""
        near = sum(max(side) <= SQUARE * min(side) for side in self.sides)
        return near / len(self.sides) if self.sides else 1.0

    def short_side(self, share: float) -> int:
        """The length below which this share of the images' shorter sides lies, in pixels."""
        sides = sorted(min(side) for side in self.sides)
        return sides[min(len(sides) - 1, int(share * len(sides)))] if sides else 0

    def as_json(self) -> dict[str, Any]:
        columns = self.columns
        return {
            "path": place(self.source),
            "kind": self.source.kind,  # pyright: ignore[reportAttributeAccessIssue]
            "images": self.images,
            "exact": self.exact,
            "read": self.read,
            "ignored": self.ignored,
            "texts": self.texts,
            "labels": dict(self.labels.most_common()),
            "splits": dict(self.splits),
            "metadata": list(self.metadata),
            "columns": columns and {role: getattr(columns, role) for role in ROLES},
            "looked": self.looked,
            "kinds": dict(self.kinds),
            "short_side": {q: self.short_side(q / 100) for q in (0, 50, 100)} if self.sides else {},
            "square": round(self.square, 3) if self.sides else None,
            "broken": [{"name": name, "reason": reason} for name, reason in self.broken],
            "notes": list(self.notes),
        }


ROLES = ("image", "text", "label", "key", "split")
"""Of a table's columns."""


def place(source: Any) -> str:
    """Where a source lies, as people write it: a `Path` makes one slash of a URL's two."""
    url = URL.fullmatch(str(source.path))
    return f"{url['scheme']}://{url['rest']}" if url and url["scheme"] != "file" else str(source.path)


def survey(source: Source, *, seconds: float = 20.0, notes: Sequence[str] = ()) -> Survey:
    """Lists for a quarter of the time, reads until half of it, and decodes in the rest; in random order.

    Raises `ValueError` if the source is not there, or there is no image in it.
    """
    if isinstance(source, IdxSource):
        return _numbers(source)
    start = time.monotonic()
    drawn = draw(source, until=start + seconds / 4)
    source = placed(source, drawn)
    scratch = cache_folder()
    scratch.mkdir(parents=True, exist_ok=True)
    sampled = Sampled(path=source.path, source=source, drawn=drawn, tally=Tally(until=start + seconds / 2))
    with tempfile.TemporaryDirectory(prefix="init-", dir=scratch) as folder:
        entries, ignored = _read(sampled, Storage.at(folder))
    images, exact = estimated(sampled)
    if not exact:  # metadata name images that were not come to
        entries = [e for e in entries if e.reject != "missing" or e.name not in drawn.names]
    if not entries:
        raise ValueError(f"{place(source)} has no image in it ({ignored:,} other files).")
    images = len(entries) if exact else max(len(entries), images)
    broken = [(e.name, reason) for e in entries if (reason := e.reject or e.fault)]
    whole = [e for e in entries if not (e.reject or e.fault)]
    if not whole:
        raise ValueError(_useless(source, broken))
    good, bad = _decoded(sampled, whole, until=start + seconds)
    scale = images / len(entries)
    facts = Counter(key for e in entries for key in e.facts)
    return Survey(
        source=source,
        images=images,
        exact=exact,
        read=len(entries),
        ignored=ignored if exact else 0,
        texts=round(scale * facts.pop("text", 0)),
        labels=_scaled(
            scale, Counter(str(e.facts["label"]) for e in entries if e.facts.get("label") is not None)
        ),
        splits=_scaled(scale, Counter(e.split for e in entries if e.split)),
        metadata=tuple(sorted(set(facts) - {"label", "file_name"})),
        columns=_columns(drawn),
        looked=len(good) + len(bad),
        kinds=Counter(entry.kind for entry in good if entry.kind),
        sides=tuple((entry.width, entry.height) for entry in good if entry.width and entry.height),
        broken=tuple(sorted([*broken, *bad])),
        notes=(*notes, *(f"{name} is too large to be read here; the run reads it" for name in drawn.unread)),
    )


def _useless(source: Source, broken: Sequence[tuple[str, str]]) -> str:
    from pipelines.sources.reject import REASONS

    (reason, count), name = Counter(why for _, why in broken).most_common(1)[0], broken[0][0]
    told = f"none of {len(broken):,} images looked at in {place(source)} can be used: {count:,} are "
    told += f"{REASONS.get(reason, reason)!r}, as {next((n for n, why in broken if why == reason), name)}."
    named = isinstance(source, TableSource) and reason in ("missing", "outside")
    return f"{told} --below DIR says where the files lie that a table names." if named else told


def _numbers(source: IdxSource) -> Survey:
    """Files that say themselves what is in them."""
    files = IdxFiles(at_hand(source.path))
    labels, splits = Counter[str](), Counter[str]()
    for part in source.roots():
        source.split(part)  # checks that labels and images agree
        said = files.labels(part.name)
        labels.update({source.names[n]: count for n, count in Counter(said).items()})
        splits[part.name] = len(said)
    first = next(name for name, count in splits.items() if count)
    shape = header(files.read(f"{first}/0", 1 << 20)).upright
    images = splits.total()
    return Survey(
        source=source,
        images=images,
        read=images,
        ignored=0,
        texts=images,
        labels=labels,
        splits=splits,
        looked=images,
        kinds=Counter(png=images),
        sides=(shape,) * images,
    )


def _read(sampled: Sampled, scratch: Storage) -> tuple[list[Entry], int]:
    """Inputs by name, and how many files are none."""
    from pipelines.sources.sightings import Question
    from pipelines.sources.survey import survey as read_through
    from pipelines.stages.ingest import Ingest

    limits = Ingest.max_bytes, Ingest.max_pixels
    found = read_through(sampled, Question(max_bytes=limits[0], max_pixels=limits[1]), store=scratch)
    return sorted(found.entries(), key=lambda entry: entry.name), found.ignored


def _decoded(
    sampled: Sampled, whole: list[Entry], *, until: float
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Those that decode, and (name, reason) of those that do not, of as many as the time allows."""
    from pipelines.sources.untrusted import Task, looked_at
    from pipelines.stages.ingest import Ingest

    whole = list(whole)
    random.Random(0).shuffle(whole)
    task = Task(background=Ingest.background, max_bytes=Ingest.max_bytes, max_pixels=Ingest.max_pixels)
    reader = sampled.reader(sampled.tally.held)
    good, bad = list[Entry](), list[tuple[str, str]]()
    while whole and time.monotonic() < until:
        batch, whole = whole[:BATCH], whole[BATCH:]
        # What cannot be read is as good as empty.
        data = (_bytes(reader, entry, task.max_bytes) for entry in batch)
        for entry, look in zip(batch, looked_at(task, data), strict=True):
            if reason := look.get("reject"):
                bad.append((entry.name, reason))
            else:
                good.append(entry)
    return good, bad


def _bytes(reader: Reader, entry: Entry, limit: int) -> bytes:
    try:
        return reader.read(entry.where, limit)
    except OSError:
        return b""


def _scaled(scale: float, counts: Counter[str]) -> Counter[str]:
    return Counter({name: max(1, round(scale * count)) for name, count in counts.items()})


def _columns(drawn: Drawn) -> Columns | None:
    """As the first piece of a table says; tables of one source are alike."""
    said = next((part.data["columns"] for part in drawn.parts if "columns" in part.data), None)
    return Columns(**{**said, "others": tuple(said["others"])}) if said else None
