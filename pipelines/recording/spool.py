"""What is to be recorded, kept on disk until MLflow has it: appending takes a disk write and nothing else.

Each process that records writes a file of its own, one JSON record a line, and holds a lock on it while it
lives. A flusher (`pipelines.recording.flush`) in another process reads the files, keeps how far it came in a
cursor beside each, and deletes what is flushed. A torn last line (the writer was killed) is not a record.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
AWAY = "away"
"""Beside the files while MLflow does not answer: nobody needs to wait for it then."""


class Spool:
    """Appends records to one new file in `folder`; a record is on disk when `append` returns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
        # locked before it has its name: a flusher never takes it for a dead writer's
        self._file = open(self.path.with_suffix(".new"), "xb")  # noqa: SIM115
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.path.with_suffix(".new").rename(self.path)

    def append(self, record: Record) -> None:
        self._file.write(json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class SpoolFile:
    """One writer's file, as the flusher sees it."""

    path: Path

    @property
    def _cursor(self) -> Path:
        return self.path.with_suffix(".cursor")

    def cursor(self) -> int:
        """Bytes that are flushed."""
        try:
            return int(self._cursor.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def advance(self, offset: int) -> None:
        temporary = self._cursor.with_suffix(".cursor.new")
        with open(temporary, "w") as file:
            file.write(str(offset))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._cursor)

    def read(self, *, limit: int = 500) -> Iterator[tuple[int, Record]]:
        """Whole records after the cursor with the offset behind each, at most `limit`."""
        offset = self.cursor()
        with open(self.path, "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n") or limit == 0:
                    return
                offset += len(line)
                limit -= 1
                yield offset, json.loads(line)

    def alive(self) -> bool:
        """Whether the process that writes it still lives: the lock goes with the process, however it ends."""
        with open(self.path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def delete(self) -> None:
        # the records first: a cursor alone does no harm, records without their cursor would be flushed again
        self.path.unlink()
        self._cursor.unlink(missing_ok=True)


def files(folder: Path) -> list[SpoolFile]:
    """The files of a spool, oldest first."""
    return [SpoolFile(path) for path in sorted(folder.glob("*.jsonl"))]
