"""Tables as parts that tasks read: row groups of Parquet, ranges of lines."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.sources.blobs import Blobs
from pipelines.sources.columns import Columns, Kind, choose
from pipelines.sources.copies import StoredReader, copying
from pipelines.sources.lines import Csv, JsonLines, buffered
from pipelines.sources.rowgroups import ROWS, RowGroups, Unreadable, features
from pipelines.sources.rows import Row, Rows
from pipelines.sources.source import Found, Part
from pipelines.sources.tree import File, LocalTree, Tree, tree
from pipelines.sources.within import Root

ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Tables below one folder, with what was said of their columns."""

    files: Tree
    home: Path
    """The folder that `files` is of."""
    images: Path | None = None
    """The folder of files that rows name; each table's own if None."""
    wanted: Mapping[str, str | None] = field(default_factory=dict)
    """Role -> column, as `columns.choose` takes it."""
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Column -> names of its numbers, for tables that do not say them."""

    def roots(self, files: Sequence[File], stated: Mapping[str, str]) -> list[Part]:
        """A part for each table, that is to be cut; `stated` is a table's split, by its name."""
        return [
            Part(
                name=file.name,
                stamp=file.stamp,
                data={"file": file.name, "stamp": file.stamp, "stated": stated.get(file.name)},
                leaf=False,
            )
            for file in files
        ]

    def split(self, part: Part) -> list[Part]:
        """Cuts a table; where rows name files, cuts it again, as those of a piece decide what it is.

        Raises:
            ValueError: a column is missing, or the table is no UTF-8.
        """
        if "piece" in part.data:
            return [self._stamped(part)]
        said = part.data
        try:
            with self._open(said["file"]) as table:
                pieces = table.pieces()
                columns, names = self._columns(said["file"], table)
        except (OSError, Unreadable) as error:
            return [Part(name=part.name, stamp=part.stamp, data={**said, "broken": str(error)})]
        # What lies under one address in a bucket is taken to stay as it is.
        stamped = columns.kind == "path" and isinstance(self._root(said["file"]).files, LocalTree)
        return [
            Part(
                name=f"{part.name}|{'-'.join(map(str, piece))}",
                stamp=part.stamp,
                data={**said, "piece": piece, "columns": asdict(columns), "names": names},
                leaf=not stamped,
            )
            for piece in pieces
        ]

    def read(self, part: Part, limit: int, known: Mapping[str, str], blobs: Blobs) -> Iterator[Found]:
        said = part.data
        if "broken" in said:
            yield Found(name=said["file"], reject="unreadable", facts={"error": said["broken"]})
            return
        with self._open(said["file"]) as table, copying(blobs, part, limit) as copies:
            rows = self._rows_of(part)
            yield from rows.found(_named(table, part), limit, known, copies)

    def reader(self, blobs: Blobs) -> StoredReader:
        return StoredReader(tree(self.images) if self.images else self.files, blobs)

    def _stamped(self, part: Part) -> Part:
        """The piece as a leaf, whose stamp is that of the files that its rows name, too."""
        hasher = hashlib.sha256(part.stamp.encode())
        with self._open(part.data["file"]) as table:
            for stamp in self._rows_of(part).stamps(_named(table, part)):
                hasher.update(f"{stamp}\n".encode("utf-8", "surrogateescape"))
        return Part(name=part.name, stamp=hasher.hexdigest()[:32], data=part.data)

    def _columns(self, file: str, table: _Parquet | _Lines) -> tuple[Columns, list[str]]:
        """The columns that are read, and the names of the label's numbers."""
        kinds = table.columns
        wanted = dict(self.wanted)
        told = table.features
        for role, kind in (("image", "Image"), ("label", "ClassLabel")):
            found = [name for name, one in told.items() if isinstance(one, dict) and one.get("_type") == kind]
            if wanted.get(role) is None and found and found[0] in kinds:
                wanted[role] = found[0]
        columns = choose(file, kinds, wanted)
        one = told.get(columns.label or "")
        names = one.get("names") if isinstance(one, dict) else None
        names = names if isinstance(names, list) else self.classes.get(columns.label or "", ())
        return columns, [str(name)[:256] for name in names]

    def _rows_of(self, part: Part) -> Rows:
        said = dict(part.data["columns"])
        columns = Columns(**{**said, "others": tuple(said["others"])})
        return Rows(
            columns,
            root=self._root(part.data["file"]),
            names=tuple(part.data["names"]),
            stated=part.data["stated"],
        )

    def _root(self, file: str) -> Root:
        return Root(self.images) if self.images else Root(self.home, folder=file.rpartition("/")[0])

    @contextlib.contextmanager
    def _open(self, file: str) -> Iterator[_Parquet | _Lines]:
        with self.files.open(file) as raw:
            yield _Parquet(raw) if file.lower().endswith(".parquet") else _Lines(raw, file)


class _Parquet:
    def __init__(self, raw: Any) -> None:
        self._groups = RowGroups(raw)
        self.columns = self._groups.columns
        self.features = features(self._groups.said)

    def pieces(self) -> list[list[int]]:
        """[row group, its first row in the file, first row that is read of it, the one behind the last]."""
        found, first = [], 0
        for group, rows in enumerate(self._groups.sizes()):
            # Bytes of images are read with their whole row group; the rest of a row is cheap to pass over.
            whole = any(kind in ("bytes", "picture") for kind in self.columns.values())
            step = rows if whole else ROWS
            found += [[group, first, start, min(rows, start + step)] for start in range(0, rows, step or 1)]
            first += rows
        return found

    def rows(self, piece: Sequence[int], columns: Columns) -> Iterator[tuple[str, Row | str]]:
        group, first, start, stop = piece
        roles = (columns.image, columns.text, columns.label, columns.key, columns.split)
        at = start
        reason = "bomb" if columns.kind != "path" and self._groups.swells(group, columns.image) else ""
        if not reason:
            reading = self._groups.rows(
                group,
                [*filter(None, roles), *columns.others],
                start=start,
                stop=stop,
                small=columns.kind == "path",
            )
            with contextlib.suppress(Unreadable):
                for row in reading:
                    yield str(first + at), row
                    at += 1
        for lost in range(at, stop):
            yield str(first + lost), reason or "unreadable"


class _Lines:
    def __init__(self, raw: Any, file: str) -> None:
        stream = buffered(raw)
        self._lines = (
            Csv(stream, file) if file.lower().endswith((".csv", ".tsv")) else JsonLines(stream, file)
        )
        self.columns: dict[str, Kind] = dict.fromkeys(self._lines.header, "path")
        self.features: dict[str, Any] = {}

    def pieces(self) -> list[list[int]]:
        return [list(one) for one in self._lines.ranges()]

    def rows(self, piece: Sequence[int], columns: Columns) -> Iterator[tuple[str, Row | str]]:
        for at, row in self._lines.rows(piece[0], piece[1]):
            yield f"byte {at}", "bad_row" if row is None else row


def _named(table: _Parquet | _Lines, part: Part) -> Iterator[tuple[str, Row | str]]:
    """Rows, each under a name within the source."""
    said = dict(part.data["columns"])
    columns = Columns(**{**said, "others": tuple(said["others"])})
    for name, row in table.rows(part.data["piece"], columns):
        yield f"{part.data['file']}/{name}", row
