"""CSV and JSON lines, cut into ranges of bytes at the starts of rows, so that no task reads a table whole."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

STEP = 8 << 20
"""Bytes of a range, and the rest of its last row."""
LINE = 1 << 24
"""Bytes of a line."""
_HEAD = 64
"""JSON lines that are looked at for the names of columns."""
Range = tuple[int, int]
"""Offset of a row's first byte, and of the byte behind the last."""


class Csv:
    """RFC 4180, with a header; rows as Python's `csv` reads them, a quoted line break included.

    Args:
        file: can seek.
        name: of the file, for what is said of it.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        file.seek(0)
        first = file.readline(LINE)
        self._delimiter = "\t" if name.lower().endswith(".tsv") else _delimiter(first)
        start, self.header = next(self._rows(0, None), (0, []))
        if not self.header or start is None:
            raise ValueError(f"{name}: there is no header.")
        self.header = [column.strip() for column in self.header]
        self.header[0] = self.header[0].removeprefix("\ufeff").strip('"')
        self._body = self._next

    def ranges(self) -> list[Range]:
        """One pass over the bytes: where quotes are, only who reads rows knows which line break ends one."""
        found: list[Range] = []
        at, size = self._body, self._file.seek(0, 2)
        while at < size:
            self._file.seek(at)
            block = self._file.read(STEP)
            end = at + block.rfind(b"\n") + 1 if b'"' not in block else at
            if at + len(block) == size:
                end = size
            if end == at:
                end = size
                for start, _ in self._rows(at, None):
                    if start >= at + STEP:
                        end = start
                        break
            found.append((at, end))
            at = end
        return found

    def rows(self, start: int, end: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Offset and row; None for one with more columns than the header. `ValueError` if not UTF-8."""
        for at, values in self._rows(start, end):
            if not values:
                continue
            if len(values) > len(self.header):
                yield at, None
                continue
            yield (
                at,
                {name: _nested(v) for name, v in zip(self.header, values, strict=False) if v != "" and name},
            )

    def _rows(self, start: int, end: int | None) -> Iterator[tuple[int, list[str]]]:
        self._next = start
        self._file.seek(start)
        reader = csv.reader(self._lines(end), delimiter=self._delimiter)
        while True:
            at = self._next
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"{self._name}, row at byte {at:,}: {error}.") from error
            if values is None:
                return
            yield at, values

    def _lines(self, end: int | None) -> Iterator[str]:
        """Lines by \\n alone; the reader asks for no more than the row at hand takes."""
        while end is None or self._next < end:
            line = self._file.readline(LINE)
            if not line:
                return
            if len(line) == LINE:
                raise ValueError(f"{self._name}: a line has more than {LINE:,} bytes (byte {self._next:,}).")
            self._next += len(line)
            try:
                yield line.decode()
            except UnicodeDecodeError:
                raise ValueError(
                    f"{self._name}: not UTF-8 (byte {self._next - len(line):,}); save it as UTF-8."
                ) from None


class JsonLines:
    """One JSON object a line."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        columns: dict[str, None] = {}
        for n, (_, row) in enumerate(self.rows(0, LINE)):
            columns |= dict.fromkeys(row or ())
            if n == _HEAD:
                break
        self.header = list(columns)

    def ranges(self) -> list[Range]:
        size = self._file.seek(0, 2)
        cuts = [0]
        while cuts[-1] + STEP < size:
            self._file.seek(cuts[-1] + STEP - 1)
            at = self._file.tell() + len(self._line())
            cuts.append(at)
        return [(a, b) for a, b in zip(cuts, [*cuts[1:], size], strict=True) if a < b]

    def rows(self, start: int, end: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Offset and row; None for what is no JSON object."""
        self._file.seek(start)
        at = start
        while at < end and (line := self._line()):
            if line.strip():
                yield at, _object(line)
            at += len(line)

    def _line(self) -> bytes:
        line = self._file.readline(LINE)
        if len(line) == LINE:
            raise ValueError(f"{self._name}: a line has more than {LINE:,} bytes.")
        return line


def _delimiter(head: bytes) -> str:
    """What parts the header's columns: a comma where there is one."""
    counts = {mark: head.count(mark.encode()) for mark in (",", ";", "\t")}
    return "," if counts[","] else max(counts, key=lambda mark: counts[mark])


def _nested(text: str) -> Any:
    """Boxes and the like, which CSV can only hold as JSON."""
    if text[:1] in "[{" and text[-1:] in "]}":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def buffered(file: BinaryIO) -> BinaryIO:
    """With lines: what trees open is not buffered."""
    return io.BufferedReader(file, 1 << 20)  # type: ignore[arg-type]
