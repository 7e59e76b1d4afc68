"""Parquet, row group by row group, from files that nobody vouches for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from pipelines.sources.columns import Kind
from pipelines.sources.copies import unread
from pipelines.sources.layout import up_to

_MAGIC = b"PAR1"
_FOOTER_BYTES = 1 << 28
ROWS = 16_384
"""Of a row group without bytes of images that one task reads at most."""
_BATCH = 32
_SMALL_BATCH = 2048
_RATIO, _FREE = 200, 1 << 26
"""Unpacked bytes for each packed one of an image's column, past the first so many."""
_OBJECTS = (b"arrow.py_extension_type", b"ray.data.")
"""Extension types whose readers once unpickled what a file says (CVE-2023-47248, CVE-2026-41486)."""


class Unreadable(Exception):
    """A file, or the rest of a row group, that cannot be read; its argument says why."""


class RowGroups:
    """An open Parquet file. `Unreadable` if it is none, is cut short, or asks for Python objects."""

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # By its bytes, as opening it by pyarrow, for its metadata alone too, makes its extension types.
            _check(_footer(file))
            file.seek(0)
            self._file = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            said = self._file.metadata.metadata or {}
            self.said = {name.decode("utf-8", "replace"): value for name, value in said.items()}
            self.columns: dict[str, Kind] = {
                field.name: _kind(field.type) for field in self._file.schema_arrow
            }
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise Unreadable(unread(error)) from error

    def sizes(self) -> list[int]:
        """Rows of each row group."""
        return [self._file.metadata.row_group(n).num_rows for n in range(self._file.metadata.num_row_groups)]

    def swells(self, group: int, column: str) -> bool:
        """Whether a column claims to unpack to far more than images are packed into."""
        held = self._file.metadata.row_group(group)
        sizes = [
            (one.total_uncompressed_size, one.total_compressed_size)
            for one in map(held.column, range(held.num_columns))
            if one.path_in_schema.split(".")[0] == column
        ]
        plain, packed = sum(size for size, _ in sizes), sum(size for _, size in sizes)
        return plain > _FREE + _RATIO * packed

    def rows(
        self,
        group: int,
        columns: Sequence[str],
        *,
        start: int = 0,
        stop: int | None = None,
        small: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Rows of a row group, from `start` to before `stop`; `Unreadable` where it does not go on.

        Args:
            small: no bytes of images are among the columns.
        """
        import pyarrow as pa

        size = _SMALL_BATCH if small else _BATCH
        at = 0
        try:
            for batch in self._file.iter_batches(
                size, row_groups=[group], columns=list(columns), use_threads=False
            ):
                rows = batch.num_rows
                if at + rows > start and (stop is None or at < stop):
                    first, last = max(0, start - at), rows if stop is None else min(rows, stop - at)
                    yield from batch.slice(first, last - first).to_pylist()
                at += rows
                if stop is not None and at >= stop:
                    return
        except (pa.ArrowException, OSError, ValueError, OverflowError, UnicodeDecodeError) as error:
            raise Unreadable(unread(error)) from error


def features(said: Mapping[str, bytes]) -> dict[str, Any]:
    """What HuggingFace `datasets` wrote of a file's columns; empty where it did not."""
    try:
        found = json.loads(said.get("huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _kind(kind: Any) -> Kind:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        fields = {kind.field(n).name: _kind(kind.field(n).type) for n in range(kind.num_fields)}
        return "picture" if fields.get("bytes") == "bytes" else "other"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "bytes"
    if types.is_string(kind) or types.is_large_string(kind):
        return "path"
    return "number" if types.is_integer(kind) or types.is_floating(kind) else "other"


def _footer(file: BinaryIO) -> bytes:
    """The metadata at a Parquet file's end, as they lie there."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    end = up_to(file, 8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or length > min(size - 8, _FOOTER_BYTES):
        raise ValueError("not Parquet, or cut short")
    file.seek(size - 8 - length)
    return up_to(file, length)


def _check(footer: bytes) -> None:
    if any(needle in footer for name in _OBJECTS for needle in _in_base64(name)):
        raise ValueError("it has columns of Python objects, which are never read: write encoded images")


def _in_base64(text: bytes) -> list[bytes]:
    """What is seen of a text in base64, in which Arrow schemas stand, for each of three places to begin."""
    found = []
    for before in range(3):
        coded = base64.b64encode(bytes(before) + text).rstrip(b"=")
        # The first and the last characters hold bits of what stands beside it.
        found.append(coded[-(-before * 8 // 6) : (before + len(text)) * 8 // 6])
    return found
