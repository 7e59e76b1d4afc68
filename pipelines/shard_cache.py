"""Ranges of a remote store's files, kept in a folder of this machine for all its workers.

An entry appears whole or not at all: it is written under a temporary name and linked. Nothing in it is
trusted: who reads a member checks its digest, and drops an entry that turned out to be damaged. Workers that
want one range at the same time fetch it once, by a lock that a killed one leaves free.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.storage import PARTIAL, Storage, cache_folder

TRIES = 4
"""How often a range is asked for before the store is said not to answer."""
PAUSE = 0.5
"""Seconds before the second try; twice as many before each further one."""
STALE = 600.0
"""Seconds after which an unfinished file is that of a process that died."""
TOUCHED = 60.0
"""Seconds within which an entry's use is noted once."""
FREE = 0.5
"""Share of the free disk that a cache may take which nobody gave a size."""
SLACK = 0.9
"""Share of its size that is left after entries were evicted."""
WHOLE = (0, -1)
"""The range of a whole file."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where a training keeps what it read from s3, gs or az; a store on this machine's disks needs none."""

    folder: str | None = None
    """On a local disk; a folder in `LATENTMILL_CACHE`, or in ~/.cache/latentmill, if None."""
    bytes: int | None = None
    """It may take, with all workers on a machine; half of the free disk if None."""

    def __post_init__(self) -> None:
        if self.bytes is not None and self.bytes < 1 << 20:
            raise ValueError(f"cache.bytes is {self.bytes}; a cache needs 1,048,576 at least.")


class OpenFile:
    """A file that closes itself once nobody reads it any more, whoever was the last."""

    def __init__(self, path: str) -> None:
        self.handle = -1
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; safe for several threads at once."""
        return os.pread(self.handle, size, offset)

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


class OpenFiles:
    """The files that were read last, open."""

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> OpenFile:
        """`FileNotFoundError` if there is none."""
        with self._lock:
            file = self._open.get(path)
            if file is not None:
                self._open.move_to_end(path)
                return file
        file = OpenFile(path)
        with self._lock:
            self._open[path] = file
            while len(self._open) > self.most:
                self._open.popitem(last=False)
        return file

    def forget(self, path: str) -> None:
        with self._lock:
            self._open.pop(path, None)


class ShardCache:
    """Ranges of files that never change under their name and version."""

    def __init__(self, config: CacheConfig) -> None:
        self.folder = Path(config.folder).expanduser() if config.folder else cache_folder() / "ranges"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.budget = config.bytes or int((shutil.disk_usage(self.folder).free + self.used()) * FREE)
        self._files = OpenFiles()
        self._new = self.budget  # so that the first entry makes it look
        self._noted: dict[Path, float] = {}
        self.fetched = self.requests = 0
        """Bytes and requests that went to stores."""

    def read(
        self, storage: Storage, name: str, version: str, span: tuple[int, int], part: tuple[int, int]
    ) -> bytes:
        """Bytes of `part` (offset and size in the file), out of the range `span` that holds it.

        Args:
            version: another one is another file.

        Raises:
            EOFError, FileNotFoundError: the file ends before, or is not there.
            ConnectionError: the store does not answer.
        """
        path = self._path(storage, name, version, span)
        offset, size = part[0] - span[0], part[1]
        for _ in range(2):
            try:
                data = self._files.get(str(path)).read(offset, size)
            except FileNotFoundError:
                self._fetch(storage, name, span, path)
                with contextlib.suppress(FileNotFoundError):  # evicted already: the cache is too small
                    return self._files.get(str(path)).read(offset, size)
                return _ranged(storage, name, *part)
            if len(data) == size:
                self._note(path)
                return data
            self._drop(path)
        return _ranged(storage, name, *part)

    def keep(self, storage: Storage, name: str, version: str, span: tuple[int, int]) -> None:
        """Has the range at hand for `read`."""
        path = self._path(storage, name, version, span)
        if path.exists():
            self._note(path)
        else:
            self._fetch(storage, name, span, path)

    def whole(self, storage: Storage, name: str, version: str) -> bytes:
        """A small file's bytes."""
        path = self._path(storage, name, version, WHOLE)
        for _ in range(2):
            with contextlib.suppress(FileNotFoundError):
                data = path.read_bytes()
                self._note(path)
                return data
            self._fetch(storage, name, WHOLE, path)
        return _ranged(storage, name, *WHOLE)

    def drop(self, storage: Storage, name: str, version: str, span: tuple[int, int]) -> None:
        """Forgets a range that is not what the store has."""
        self._drop(self._path(storage, name, version, span))

    def used(self) -> int:
        """Bytes of all entries."""
        return sum(size for _, _, size in self._entries())

    def _path(self, storage: Storage, name: str, version: str, span: tuple[int, int]) -> Path:
        said = f"{storage.url}\0{name}\0{version}\0{span[0]}\0{span[1]}"
        key = hashlib.sha256(said.encode()).hexdigest()
        return self.folder / key[:2] / key

    def _drop(self, path: Path) -> None:
        self._files.forget(str(path))
        path.unlink(missing_ok=True)

    def _note(self, path: Path) -> None:
        """That it was used: what was used longest ago is evicted first."""
        now = time.monotonic()
        if now - self._noted.get(path, -TOUCHED) >= TOUCHED:
            if len(self._noted) > 1 << 16:
                self._noted.clear()
            self._noted[path] = now
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)

    def _fetch(self, storage: Storage, name: str, span: tuple[int, int], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(path.parent.name):
            if path.exists():  # another worker was first
                return
            data = _ranged(storage, name, *span)
            self.fetched, self.requests = self.fetched + len(data), self.requests + 1
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
            try:
                temporary.write_bytes(data)
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        self._new += len(data)
        if self._new >= self.budget // 32:
            self._evict()
            self._new = 0

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """A lock among all processes and threads of this machine; the kernel frees a dead process's."""
        locks = self.folder / "locks"
        locks.mkdir(exist_ok=True)
        with (locks / name).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def _entries(self) -> Iterator[tuple[float, Path, int]]:
        """Time of last use, path and bytes."""
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
                for entry in found:
                    with contextlib.suppress(FileNotFoundError):
                        state = entry.stat()
                        yield state.st_mtime, Path(entry.path), state.st_size

    def _evict(self) -> None:
        """Removes what was used longest ago, and what the dead left; readers keep what they have open."""
        with self._locked("evict", wait=False) as mine:
            if not mine:
                return
            entries = sorted(self._entries())
            total, now = sum(size for _, _, size in entries), time.time()
            for used, path, size in entries:
                partial = path.name.endswith(PARTIAL)
                if (partial and now - used > STALE) or (not partial and total > self.budget * SLACK):
                    self._drop(path)
                    total -= size


def _ranged(storage: Storage, name: str, offset: int, size: int) -> bytes:
    """A range from the store, which may not answer at once."""
    pause = PAUSE
    for attempt in range(TRIES):
        try:
            return storage.read(name) if (offset, size) == WHOLE else storage.read_range(name, offset, size)
        except (ConnectionError, TimeoutError):
            if attempt == TRIES - 1:
                raise
            time.sleep(pause)
            pause *= 2
    raise AssertionError("the last try returns or raises")
