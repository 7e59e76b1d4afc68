"""What img2dataset says of the rows of one shard, and whether what lies there bears it out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.shards import is_key
from pipelines.sources import said
from pipelines.sources.copies import unread
from pipelines.sources.layout import up_to
from pipelines.sources.rowgroups import RowGroups, Unreadable
from pipelines.sources.source import Found
from pipelines.sources.tree import Tree

_FAILED = {"failed_to_download": "download_failed", "failed_to_resize": "resize_failed"}
_HASHES = ("sha256", "md5", "sha512")
_BOOKKEEPING = ("key", "status", "error_message", "width", "height", "exif", "caption", "txt")
_RENAMED = {"original_width": "downloaded_width", "original_height": "downloaded_height",
            **{name: f"downloaded_{name}" for name in _HASHES}}  # fmt: skip
"""Of the file as it was downloaded; img2dataset encodes another one from it."""
_STATS_BYTES = 1 << 26
_LOST = 1_000_000
"""Rows of one shard that may be told of one by one though nothing is left of them."""


@dataclass(kw_only=True)
class ShardRows:
    """The rows of a shard by key, and which of them were found."""

    stem: str
    """Name of the shard, such as 00042."""
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    count: int | None = None
    """Rows that the shard was given; None if it is not finished."""
    faults: list[Found] = field(default_factory=list)
    """What could not be read of its bookkeeping."""
    text: str | None = None
    """Column of the text; caption if None."""
    label: str | None = None
    seen: set[str] = field(default_factory=set)

    def judged(self, key: str, found: Found, told: Mapping[str, Any]) -> Found:
        """An image with what its row says; `told` is what stands beside it in the shard."""
        row = self.rows.get(key)
        first = key not in self.seen
        self.seen.add(key)
        facts = self._facts(row if row is not None else told)
        if row is None:
            # It is an image all the same; only nobody wrote down that it would be there.
            facts = {**facts, "unlisted_by_img2dataset": True}
        legal = first and is_key(key) and not key.startswith("__")
        found = replace(found, facts=facts, key=key if legal else None)
        if found.reject is None and row is not None and not _borne_out(found.data, row, told):
            return replace(found, where=None, data=None, reject="digest_mismatch")
        return found

    def lost(self) -> Iterator[Found]:
        """Every row that no image was found of, with the reason."""
        for key, row in self.rows.items():
            if key not in self.seen:
                error = unread(row.get("error_message") or "")
                facts = {**self._facts(row), **({"error": error} if error else {})}
                reason = _FAILED.get(str(row.get("status")), "lost_by_img2dataset")
                yield Found(
                    name=f"{self.stem}/{key}", key=key if is_key(key) else None, facts=facts, reject=reason
                )
        if self.count is None:
            yield Found(name=self.stem, reject="unfinished_shard")
            return
        for name in self._unwritten(min(self.count - len(self.rows), _LOST)):
            yield Found(name=f"{self.stem}/{name}", reject="lost_by_img2dataset")

    def _unwritten(self, number: int) -> list[str]:
        """Keys of rows that stand in no table: what is left out of the sequence that img2dataset counts."""
        if number <= 0:
            return []
        width = {len(key) for key in self.rows if key.isdecimal()}
        if len(width) == 1 and self.stem.isdecimal() and (digits := width.pop() - len(self.stem)) > 0:
            counted = (f"{self.stem}{n:0{digits}d}" for n in range(len(self.rows) + number))
            keys = [key for key in counted if key not in self.rows]
            if len(keys) == number:
                return keys
        return [f"unwritten-{n}" for n in range(number)]

    def _facts(self, row: Mapping[str, Any]) -> dict[str, Any]:
        text = row.get(self.text) if self.text else row.get("caption") or row.get("txt") or row.get("text")
        told = {_RENAMED.get(name, name): value for name, value in row.items() if name not in _BOOKKEEPING}
        told.pop(self.text or "text", None)
        label = told.pop(self.label, None) if self.label else told.get("label")
        return said.facts({**told, "text": text, "label": label})


def shard_rows(
    files: Tree, stem: str, *, table: bool, stats: bool, text: str | None, label: str | None
) -> ShardRows:
    """Reads `stem`.parquet and `stem`_stats.json, as far as they are there and whole."""
    made = ShardRows(stem=stem, text=text, label=label)
    if stats:
        with files.open(f"{stem}_stats.json") as file:
            made.count = _count(up_to(file, _STATS_BYTES))
    if not table:
        return made
    rows: dict[str, dict[str, Any]] = {}
    made.rows = rows
    try:
        with files.open(f"{stem}.parquet") as file:
            groups = RowGroups(file)
            kinds = groups.columns
            columns = [
                name for name, kind in kinds.items() if kind not in ("bytes", "picture") and name != "exif"
            ]
            if "key" not in columns or "status" not in columns:
                raise Unreadable("no columns key and status: not a table of img2dataset")
            for group in range(len(groups.sizes())):
                for row in groups.rows(group, columns, small=True):
                    rows[_unused(str(row["key"]), rows)] = row
    except (OSError, Unreadable) as error:
        # An unfinished shard's table has no end yet, which is no second fault.
        if made.count is not None:
            made.faults.append(
                Found(name=f"{stem}.parquet", reject="unreadable", facts={"error": unread(error)})
            )
    return made


def _borne_out(data: bytes | None, row: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether the table, the .json in the shard and, where it was kept as it came, the file say the same."""
    for name in _HASHES:
        written = row.get(name)
        if not isinstance(written, str):
            continue
        beside = told.get(name)
        if isinstance(beside, str) and beside != written:
            return False
        # A size is written down of what was encoded anew; the digest is that of the download.
        if data is not None and row.get("width") is None and hashlib.new(name, data).hexdigest() != written:
            return False
    return "url" not in told or told["url"] == said.clean(row.get("url"))


def _count(data: bytes) -> int | None:
    try:
        count = json.loads(data)["count"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return count if isinstance(count, int) and count >= 0 else None


def _unused(key: str, taken: Mapping[str, Any]) -> str:
    while key in taken:
        key += "+"
    return key
