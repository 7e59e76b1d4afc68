"""What tasks saw in the parts of a source: a Parquet file a part, sorted by where its rows will be joined."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from pipelines.shards import canonical, is_key
from pipelines.sources.blobs import Blobs
from pipelines.sources.layout import label_of, split_of
from pipelines.sources.listing import encode, plain_key
from pipelines.sources.source import Found, Part, Source

_ELSEWHERE = "$elsewhere"
"""Stands in a part's data for the file that holds them."""
GROUP = 8192
"""Rows that are read at once where a range is wanted."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a survey asks of each image, beside its digest."""

    max_bytes: int
    max_pixels: int
    background: str = "#ffffff"
    near: bool = False
    """Whether each is decoded, in a child, for a perceptual hash."""
    features: bool = False
    """Whether a network sees each, too."""
    retry: str | None = None
    """Another word asks everything anew."""

    @property
    def name(self) -> str:
        said: list[Any] = [
            5,
            self.max_bytes,
            self.max_pixels,
            self.background if self.near else None,
            self.near,
            self.retry,
        ]
        said += ["features"] if self.features else []
        return hashlib.sha256(canonical(said)).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the driver is told of a part."""

    file: str
    rows: int
    labels: tuple[str, ...]
    """Folders that images lie in."""
    labels_apart: tuple[str, ...]
    """The same, past folders that are called as splits are."""
    splits: tuple[str, ...]
    facts: bool
    """Whether metadata say something of images."""


@dataclass(frozen=True, kw_only=True)
class Spotter:
    """Opens what sees a part: the executor's factory."""

    source: Source
    question: Question
    place: Storage
    earlier: Mapping[str, str]
    """Part's file stem -> file of an earlier state of the same part."""

    def __call__(self) -> Any:
        return self.see

    def see(self, part: Part) -> Seen:
        name = file_of(self.question, part)
        if not self.place.exists(name):
            self.place.put_if_absent(name, self._look(part))
        return _told(self.place, name)

    def _look(self, part: Part) -> bytes:
        before = {}
        if earlier := self.earlier.get(stem_of(self.question, part)):
            before = {row["name"]: row for row in table(self.place, [earlier]).to_pylist() if row["stamp"]}
        known = {name.decode("utf-8", "surrogateescape"): row["stamp"] for name, row in before.items()}
        rows: list[dict[str, Any]] = []
        kept = _Kept(self.place, f"looks/{file_of(self.question, part)}")
        for found, look in self._seen(part, known):
            name = encode(found.name)
            again = found.data is None and found.stamp and not found.reject and not found.side
            row = before[name] if again else _row(found, look)
            rows.append(kept.add(row, look) if self.question.features else row)
        kept.write()
        return _parquet(rows)

    def _seen(self, part: Part, known: Mapping[str, str]) -> Iterator[tuple[Found, dict[str, Any]]]:
        """Each thing with what its bytes say; with a child beside where pictures are decoded."""
        blobs = Blobs(self.place.folder("blobs"))
        stream = self.source.read(whole(part, self.place), self.question.max_bytes, known, blobs)
        judged = ((found, self._judge(found)) for found in stream)
        if not self.question.near:
            yield from judged
            return
        from pipelines.sources.untrusted import Task, looked_at

        task = Task(
            background=self.question.background,
            max_bytes=self.question.max_bytes,
            max_pixels=self.question.max_pixels,
            features=self.question.features,
        )
        waiting: list[tuple[Found, dict[str, Any]]] = []

        def pictures() -> Iterator[bytes]:
            for found, look in judged:
                waiting.append((found, look))
                if found.data is not None and "fault" not in look:
                    yield found.data

        for seen in looked_at(task, pictures()):
            while "fault" in waiting[0][1] or waiting[0][0].data is None:
                yield waiting.pop(0)
            found, look = waiting.pop(0)
            yield found, {**look, **{"fault" if k == "reject" else k: v for k, v in seen.items()}}
        yield from waiting

    def _judge(self, found: Found) -> dict[str, Any]:
        """Digest and header of what was read."""
        from pipelines.sources.decode import Reject, checked

        if found.data is None:
            return {}
        digest = found.digest or hashlib.sha256(found.data).hexdigest()
        said: dict[str, Any] = {"digest": digest, "size": len(found.data)}
        try:
            header = checked(
                found.data, max_bytes=self.question.max_bytes, max_pixels=self.question.max_pixels
            ).header
        except Reject as reject:
            return said | {"fault": str(reject)}
        width, height = header.upright
        return said | {"kind": header.kind, "width": width, "height": height}


def parted(part: Part, place: Storage) -> Part:
    """The part without what it is made of, which is left in `place`."""
    data = canonical(dict(part.data))
    name = f"parts/{hashlib.sha256(data).hexdigest()[:32]}.json"
    place.put_if_absent(name, data)
    return dataclasses.replace(part, data={_ELSEWHERE: name})


def whole(part: Part, place: Storage) -> Part:
    """The part with what it is made of."""
    name = part.data.get(_ELSEWHERE)
    return part if name is None else dataclasses.replace(part, data=json.loads(place.read(name)))


@dataclass(frozen=True, kw_only=True)
class Merger:
    """Opens what makes one file of many, sorted as each of them is: the executor's factory."""

    place: Storage
    folder: str

    def __call__(self) -> Any:
        return self.merge

    def merge(self, group: tuple[int, Sequence[str]]) -> str:
        number, files = group
        name = f"{self.folder}/{number:05d}.parquet"
        if not self.place.exists(name):
            self.place.put_if_absent(name, packed(table(self.place, files).sort_by("place")))
        return name


class _Kept:
    """The records of a part's pictures: new ones by the network, known ones as they were."""

    def __init__(self, place: Storage, file: str) -> None:
        self._place, self._file = place, file
        self._records: list[bytes | None] = []
        self._new: list[tuple[int, bytes, bytes]] = []

    def add(self, row: dict[str, Any], look: Mapping[str, Any]) -> dict[str, Any]:
        """The row with the place of its record, if it has one."""
        from pipelines.sources.looks import record

        if "lightness" in look:
            self._new.append((len(self._records), look["lightness"], look["thumbnail"]))
            self._records.append(None)
        elif row.get("look_file"):
            self._records.append(record(self._place, row["look_file"], row["look"]))
        else:
            return row
        return row | {"look_file": self._file, "look": len(self._records) - 1}

    def write(self) -> None:
        from pipelines.sources.looks import records

        if self._records:
            made = records([light for _, light, _ in self._new], [small for *_, small in self._new])
            for (n, *_), one in zip(self._new, made, strict=True):
                self._records[n] = one
            self._place.put_if_absent(self._file, b"".join(one for one in self._records if one))


def stem_of(question: Question, part: Part) -> str:
    """What the files of a part's states have in common."""
    return f"seen/{question.name}/{hashlib.sha256(encode(part.name)).hexdigest()[:24]}"


def file_of(question: Question, part: Part) -> str:
    return f"{stem_of(question, part)}-{hashlib.sha256(part.stamp.encode()).hexdigest()[:16]}.parquet"


def table(
    place: Storage, files: Sequence[str], low: int = 0, high: int = 1 << 64, columns: Any = None
) -> Any:
    """Rows of several files whose `place` is from `low` to below `high`, as one table.

    `ValueError` if a file is not what was written.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not files:
        return _schema().empty_table()
    limits = None
    if (low, high) != (0, 1 << 64):
        first, last = (pa.scalar(limit, pa.uint64()) for limit in (low, high - 1))
        limits = (pc.field("place") >= first) & (pc.field("place") <= last)
    tables = []
    for file in files:
        try:
            found = pq.read_table(
                place.local(file), columns=columns, filters=limits, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(
                f"{place.url}/{file} is damaged; delete {place.url}: the source is then read anew."
            ) from error
        tables.append(found)
    return pa.concat_tables(tables)


def packed(rows: Any, group: int = GROUP) -> bytes:
    """A table as a file of which no page turns unseen; without sums, four of five flipped bits are read."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", row_group_size=group, write_page_checksum=True)
    return sink.getvalue()


def unit(text: str) -> int:
    """64 bits of hash: where a key lies among all keys."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def join_place(found: Found) -> int:
    """Where an image meets its metadata and its sidecar: by the name without the ending."""
    if found.key is not None:
        return unit(found.key)
    stem = posixpath.splitext(found.name)[0]
    key = plain_key(found.name)
    return unit(key if key is not None else hashlib.sha256(encode(stem)).hexdigest())


def _row(found: Found, look: Mapping[str, Any]) -> dict[str, Any]:
    if found.key is not None and not is_key(found.key):
        raise ValueError(f"{found.name}: its source gives it the key {found.key!r}, which is not legal.")
    return {
        "place": join_place(found),
        "name": encode(found.name),
        "key": found.key,
        "side": found.side,
        "where": json.dumps(found.where),
        "stamp": found.stamp,
        "digest": look.get("digest", ""),
        "size": look.get("size"),
        "kind": look.get("kind"),
        "width": look.get("width"),
        "height": look.get("height"),
        "reject": found.reject,
        "fault": look.get("fault"),
        "facts": canonical(dict(found.facts)).decode(),
        "split": found.split,
        "hash": look.get("hash"),
        "mirrored": look.get("mirrored"),
        "sound": look.get("sound"),
        "look_file": None,
        "look": None,
    }


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "place": pa.uint64(),
            "name": pa.binary(),
            "key": pa.string(),
            "side": pa.string(),
            "where": pa.string(),
            "stamp": pa.string(),
            "digest": pa.string(),
            "size": pa.int64(),
            "kind": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "reject": pa.string(),
            "fault": pa.string(),
            "facts": pa.string(),
            "split": pa.string(),
            "hash": pa.uint64(),
            "mirrored": pa.uint64(),
            "sound": pa.bool_(),
            "look_file": pa.string(),
            "look": pa.int32(),
        }
    )


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa

    rows.sort(key=lambda row: (row["place"], row["name"], row["where"]))
    labels, apart, splits = set(), set(), set()
    for row in rows:
        if not row["side"]:
            name = row["name"].decode("utf-8", "surrogateescape")
            labels.add(label_of(name, splits=False))
            apart.add(label_of(name, splits=True))
            splits.add(split_of(name))
    told = {
        "labels": sorted(map(_printed, filter(None, labels))),
        "labels_apart": sorted(map(_printed, filter(None, apart))),
        "splits": sorted(filter(None, splits)),
        "facts": any(row["side"] == "facts" for row in rows),
    }
    made = pa.Table.from_pylist(rows, schema=_schema())
    return packed(made.replace_schema_metadata({b"latentmill": canonical(told)}))


def _printed(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _told(place: Storage, name: str) -> Seen:
    import pyarrow.parquet as pq

    head = pq.read_metadata(place.local(name))
    told = json.loads(head.metadata[b"latentmill"])
    said: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    return Seen(file=name, rows=head.num_rows, **said)
