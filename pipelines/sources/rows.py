"""From a table's rows to images: their bytes stand in the row, or the row says in which file they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipelines.shards import canonical, is_key
from pipelines.sources import said
from pipelines.sources.columns import Columns
from pipelines.sources.copies import Copies
from pipelines.sources.layout import up_to
from pipelines.sources.listing import SPLITS
from pipelines.sources.source import Found
from pipelines.sources.within import Refused, Root

Row = Mapping[str, Any]


class Rows:
    """Turns the rows of one part into what was found.

    Args:
        columns: of the table.
        names: of the classes that whole numbers in the label's column stand for.
        root: where files lie that rows name.
        stated: split of all rows, where the table says none.
    """

    def __init__(
        self, columns: Columns, *, root: Root | None, names: tuple[str, ...] = (), stated: str | None = None
    ) -> None:
        self._columns, self._root, self._names, self._stated = columns, root, names, stated

    def found(
        self, rows: Iterable[tuple[str, Row | str]], limit: int, known: Mapping[str, str], copies: Copies
    ) -> Iterator[Found]:
        """One for each row, but one for all rows of this part that name one file.

        Args:
            rows: each under a name of its own within the source; a reason code for what is no row.
        """
        named: dict[str, Found] = {}
        for name, row in rows:
            if isinstance(row, str):
                yield Found(name=name, reject=row)
                continue
            value = row.get(self._columns.image)
            data, path = _of(value)
            if data is not None:
                yield self._inline(name, row, data, limit, copies)
                continue
            try:
                file, stamp = self._find(path)
            except Refused as refused:
                facts = self._facts(row)
                shown = said.words(path) if isinstance(path, str) else None
                yield Found(name=name, facts={**facts, "image": shown or ""}, reject=str(refused))
                continue
            made = self._made(file, row, where=file, stamp=stamp)
            named[file] = _joined(named[file], made) if file in named else made
        for file, one in named.items():
            made = _stamped(one)
            yield made if made.stamp and known.get(file) == made.stamp else self._read(made, limit)

    def stamps(self, rows: Iterable[tuple[str, Row | str]]) -> Iterator[str]:
        """What changes when a file that a row names may have."""
        for _, row in rows:
            data, path = (None, None) if isinstance(row, str) else _of(row.get(self._columns.image))
            try:
                yield "" if data is not None else " ".join(self._find(path))
            except Refused as refused:
                yield str(refused)

    def _find(self, path: Any) -> tuple[str, str]:
        if self._root is None:
            raise Refused("missing")
        return self._root.find(path)

    def _inline(self, name: str, row: Row, data: bytes, limit: int, copies: Copies) -> Found:
        made = self._made(name, row)
        if len(data) > limit:
            return replace(made, reject="too_large")
        return replace(made, where=copies.add(data), data=data)

    def _read(self, made: Found, limit: int) -> Found:
        assert self._root
        try:
            with self._root.files.open(made.name) as file:
                return replace(made, data=up_to(file, limit + 1))
        except FileNotFoundError:
            return replace(made, reject="missing")
        except OSError:
            return replace(made, reject="unreadable")

    def _made(self, name: str, row: Row, **more: Any) -> Found:
        columns = self._columns
        key = "" if row.get(columns.key or "") is None else str(row[columns.key or ""])
        split = SPLITS.get(str(row.get(columns.split)).lower()) if columns.split else None
        legal = is_key(key) and not key.startswith("__")
        return Found(
            name=name,
            key=key if legal else None,
            facts=self._facts(row),
            split=split or self._stated,
            **more,
        )

    def _facts(self, row: Row) -> dict[str, Any]:
        columns = self._columns
        told = {name: row.get(name) for name in columns.others}
        text, label = row.get(columns.text or ""), row.get(columns.label or "")
        if isinstance(label, int) and not isinstance(label, bool) and self._names:
            label = self._names[label] if 0 <= label < len(self._names) else None
        if isinstance(text, (list, tuple)):
            texts = [one for one in text if isinstance(one, str) and one]
            told, text = {**told, **({"texts": texts} if len(texts) > 1 else {})}, texts[0] if texts else None
        return said.facts({**told, "text": text, "label": label})


def _stamped(made: Found) -> Found:
    """What is known by its stamp is taken over with all that was said of it: so that is in the stamp."""
    if not made.stamp:
        return made
    told = hashlib.sha256(canonical([made.key, made.facts, made.split])).hexdigest()
    return replace(made, stamp=f"{made.stamp} {told[:16]}")


def _of(value: Any) -> tuple[bytes | None, Any]:
    """Bytes, or else a path, in an image's column."""
    if isinstance(value, Mapping):
        data = value.get("bytes")
        return (data, None) if isinstance(data, bytes) and data else (None, value.get("path"))
    return (value, None) if isinstance(value, bytes) else (None, value)


def _joined(first: Found, other: Found) -> Found:
    """One image that two rows name."""
    return replace(first, facts=said.joined(first.facts, other.facts), split=first.split or other.split)
