"""A store in a bucket, through fsspec: an object appears whole or not at all, and the first writer wins."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import os
import random
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from cluster.storage import PARTIAL, Storage, cache_folder, check_name, whole

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
"""Scheme -> the package that speaks it."""
CONFLICTS = 8
"""Writes of one object that may collide, with neither having won yet, before the last is given up."""
REFUSED = ("PreconditionFailed", "412")
"""S3's codes where a conditional write finds its object there."""
SURROUNDINGS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_REGION",
)
"""What a connection depends on; another value makes another connection."""


class ObjectStorage(Storage):
    """A prefix of a bucket. Its first use may tell of missing credentials, bucket or server, in one line.

    Every method raises ValueError for what the user has to mend, ConnectionError where nobody answers.
    """

    def __init__(self, url: str, filesystem: Any = None) -> None:
        self.url = url
        self._filesystem = filesystem
        self._scheme, _, self._root = url.partition("://")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "filesystem": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A connection does not travel; the worker opens its own.
        self.__init__(**state)

    @property
    def filesystem(self) -> Any:
        if self._filesystem is None:
            self._filesystem = _connect(self._scheme, os.getpid(), tuple(map(os.environ.get, SURROUNDINGS)))
        return self._filesystem

    def folder(self, name: str) -> ObjectStorage:
        return ObjectStorage(f"{self.url}/{check_name(name)}", self._filesystem)

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with self._plainly():
            return cast(bytes, self.filesystem.cat_file(path))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        path = self._path(name)
        with self._plainly():
            data = cast(bytes, self.filesystem.cat_file(path, start=offset, end=offset + size))
        return whole(data, name, size)

    def exists(self, name: str) -> bool:
        path = self._path(name)
        with self._plainly():
            if self._scheme != "s3":
                return bool(self.filesystem.isfile(path))
            # isfile would also list what lies below the name, at the price of a write
            bucket, key, _ = self.filesystem.split_path(path)
            try:
                self.filesystem.call_s3("head_object", Bucket=bucket, Key=key)
            except FileNotFoundError:
                return False
            return True

    def size(self, name: str) -> int:
        path = self._path(name)
        with self._plainly():
            return int(self.filesystem.info(path)["size"])

    def list(self, prefix: str = "") -> list[str]:
        top, _, _ = prefix.rpartition("/")
        with self._plainly():
            try:
                found = self.filesystem.find(f"{self._root}/{top}".rstrip("/"))
            except FileNotFoundError:
                return []
        names = map(self._name, found)
        # Other programs mark folders by empty objects whose name ends in a slash, this one among them.
        return sorted(name for name in names if name.startswith(prefix) and name and not name.endswith("/"))

    def files(self, *, partial: bool = False) -> dict[str, tuple[int, float]]:
        if partial:  # an object is there whole or not at all
            return {}
        with self._plainly():
            try:
                found = self.filesystem.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {
            name: (int(info["size"]), _changed(info))
            for path, info in found.items()
            if (name := self._name(path)) and not name.endswith("/")
        }

    def folders(self) -> list[str]:
        with self._plainly():
            try:
                entries = self.filesystem.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
        return sorted(self._name(e["name"]).rstrip("/") for e in entries if e["type"] == "directory")

    def put_if_absent(self, name: str, source: bytes | memoryview | Path) -> bool:
        """By a conditional write, which the bucket decides: two writers need not know of one another."""
        path = self._path(name)
        if self.exists(name):
            return False
        writer = uuid.uuid4().hex
        mark = {"Metadata": {"writer": writer}} if self._scheme == "s3" else {}
        if mark:
            self._check()
        for attempt in range(CONFLICTS):
            try:
                with self._plainly():
                    if isinstance(source, Path):
                        self.filesystem.put_file(str(source), path, mode="create", **mark)
                    else:
                        self.filesystem.pipe_file(path, bytes(source), mode="create", **mark)
            except FileExistsError:
                return bool(mark) and self._is_of(path, writer)
            except OSError as error:
                if _code(error) in REFUSED:
                    return bool(mark) and self._is_of(path, writer)
                if _code(error) not in ("ConditionalRequestConflict", "409") or attempt == CONFLICTS - 1:
                    raise
                time.sleep(random.uniform(0, 0.1 * 2**attempt))
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def _check(self) -> None:
        """Once a process: `ValueError` where the server does not know conditional writes, and overwrites."""
        server = (os.getpid(), os.environ.get("AWS_ENDPOINT_URL"), self._root.partition("/")[0])
        if server in _checked:
            return
        probe = f"{self._root}/.probe-{uuid.uuid4().hex}"
        with self._plainly():
            self.filesystem.pipe_file(probe, b"first", mode="create")
            try:
                self.filesystem.pipe_file(probe, b"second", mode="create")
            except OSError as error:
                if not (isinstance(error, FileExistsError) or _code(error) in REFUSED):
                    raise
            else:
                raise ValueError(
                    f"The server of {self.url} overwrites where it must refuse (If-None-Match): two drivers "
                    "would destroy one another's work there; choose another store."
                )
            finally:
                self.filesystem.rm_file(probe)
        _checked.add(server)

    def _is_of(self, path: str, writer: str) -> bool:
        """Whether this writer's own try made the object, and only the answer to it was lost."""
        with self._plainly():
            try:
                return self.filesystem.metadata(path).get("writer") == writer
            except FileNotFoundError:
                return False

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with self._plainly():
            self.filesystem.pipe_file(path, data)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with self._plainly(), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(path)

    def delete_folder(self) -> None:
        for name in self.list():
            self.delete(name)

    def local(self, name: str) -> Path:
        path = self._path(name)
        with self._plainly():
            info = self.filesystem.info(path)
            version = hashlib.sha256(repr((self.url, name, sorted(info.items()))).encode()).hexdigest()
            copy = cache_folder() / "objects" / version[:2] / version / name.rpartition("/")[2]
            if copy.exists():
                return copy
            copy.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=copy.parent, suffix=PARTIAL)
            os.close(handle)
            try:
                self.filesystem.get_file(path, temporary)
                if os.path.getsize(temporary) != info["size"]:
                    raise EOFError(f"{self.url}/{name} broke off before its end.")
                os.replace(temporary, copy)
            finally:
                Path(temporary).unlink(missing_ok=True)
        return copy

    def free(self) -> None:
        return None

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"

    def _name(self, path: str) -> str:
        """Of a file or folder in this one, from fsspec's path."""
        return path.lstrip("/").removeprefix(self._root.lstrip("/") + "/")

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """What is wrong with the bucket itself, in one line that says what to do."""
        try:
            yield
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                bucket = self._root.partition("/")[0]
                raise ValueError(f"There is no bucket {bucket} for {self.url}: create it first.") from error
            raise
        except PermissionError as error:
            raise ValueError(
                f"{self.url} may not be used with these credentials ({_line(error)})."
            ) from error
        except Exception as error:
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
                raise ValueError(
                    f"{self.url} asks for credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                    "or AWS_PROFILE."
                ) from error
            if kinds & {"HTTPClientError", "ConnectionError", "ClientConnectionError"}:
                # An OSError, so that whoever can wait for the store does.
                raise ConnectionError(f"{self.url} does not answer ({_line(error)}).") from error
            raise


_checked: set[tuple[int, str | None, str]] = set()
"""Buckets that have refused this process a second write."""


@functools.lru_cache(maxsize=8)
def _connect(scheme: str, process: int, surroundings: tuple[str | None, ...]) -> Any:
    """One connection a process: making one takes half a second. A forked child needs its own."""
    import fsspec

    # Listings are never trusted from a cache: another driver writes into the same store.
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        tries = int(os.environ.get("AWS_MAX_ATTEMPTS", "5"))
        options["config_kwargs"] = {
            "retries": {"mode": "standard", "max_attempts": tries},
            "connect_timeout": 10,
        }
        if surroundings[0] or surroundings[1]:
            # Behind another endpoint than AWS there is rarely a name for each bucket.
            options["config_kwargs"]["s3"] = {"addressing_style": "path"}
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        package = PACKAGES[scheme]
        raise ValueError(f"{scheme}:// needs {package}: pip install {package}") from error


def _code(error: BaseException) -> str | None:
    """S3's own code of an error that fsspec has translated."""
    answer = getattr(error.__cause__, "response", None) or {}
    return answer.get("Error", {}).get("Code")


def _changed(info: Mapping[str, Any]) -> float:
    """When an object was last written, as the file systems of S3, GCS and Azure say it; else now."""
    for name in ("LastModified", "last_modified", "updated", "mtime"):
        moment = info.get(name)
        if isinstance(moment, str):
            moment = datetime.datetime.fromisoformat(moment)
        if isinstance(moment, datetime.datetime):
            return moment.timestamp()
        if isinstance(moment, (int, float)):
            return float(moment)
    return time.time()


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
