"""What is already known of a source's files, kept in this machine's cache: it may be deleted at any time."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.storage import cache_folder

_TABLES = """
create table if not exists files (name blob primary key, stamp text, digest text, head blob);
create table if not exists looks (question text, digest text, look text, primary key (question, digest));
"""
HEAD = 32
"""Leading bytes kept of each file: enough to tell an image by its magic."""


class Seen:
    """Digests by (name, stamp), so that an unchanged file is not read again, and looks by digest."""

    def __init__(self, source: Path) -> None:
        name = hashlib.sha256(str(source).encode("utf-8", "surrogateescape")).hexdigest()[:20]
        path = cache_folder() / "sources" / f"{name}.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = _open(path)
        except (OSError, sqlite3.Error):
            # A read-only home costs time, not correctness.
            self._base = _open(":memory:")

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *error: object) -> None:
        self._base.commit()
        self._base.close()

    def files(self) -> dict[bytes, tuple[str, str, bytes]]:
        """Name -> (stamp, sha256 hex, head)."""
        rows = self._base.execute("select name, stamp, digest, head from files")
        return {name: (stamp, digest, head) for name, stamp, digest, head in rows}

    def remember_files(self, rows: Iterable[tuple[bytes, str, str, bytes]]) -> None:
        """(name, stamp, sha256 hex, head) each."""
        self._base.executemany("insert or replace into files values (?, ?, ?, ?)", rows)
        self._base.commit()

    def looks(self, question: str) -> dict[str, Any]:
        """Digest -> what looking at those bytes gave, for one `question` (limits and version of the look)."""
        rows = self._base.execute("select digest, look from looks where question = ?", (question,))
        return {digest: json.loads(look) for digest, look in rows}

    def remember_looks(self, question: str, looks: Mapping[str, Any]) -> None:
        rows = [(question, digest, json.dumps(look)) for digest, look in looks.items()]
        self._base.executemany("insert or replace into looks values (?, ?, ?)", rows)
        self._base.commit()


def _open(path: Path | str) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=60)
    base.execute("pragma journal_mode = wal")
    base.execute("pragma synchronous = off")
    base.executescript(_TABLES)
    base.commit()
    return base
