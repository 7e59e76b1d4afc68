"""Where a file that a recipe names lies: at a path, in this package, in a bucket or on the hub.

`at_hand` is called where a file is opened, so that a recipe reads the same on a laptop and on any node.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from cluster.storage import Storage, cache_folder
from pipelines.pretrained.reference import SCHEME, hub_model

PACKAGE = "package:"
"""In front of a path within this package, which every machine has somewhere else."""
URL = re.compile(r"(?P<scheme>s3|gs|az|file):/+(?P<rest>.*)", re.DOTALL)
"""Of a file; a `Path` makes one slash of the two."""
PLACEHOLDER = "BUCKET"
"""What shipped recipes say for a bucket; no bucket has capital letters."""
_HERE = Path(__file__).resolve().parent
_FETCHING = ContextVar("fetching", default=True)


@contextlib.contextmanager
def fetching(allowed: bool) -> Iterator[None]:
    """Within it, `at_hand` fetches from the hub, or raises `TooMany`: a plan fetches nothing."""
    before = _FETCHING.set(allowed)
    try:
        yield
    finally:
        _FETCHING.reset(before)


def at_hand(path: str | Path) -> Path:
    """A path that this process can open: the path itself, or this machine's copy of what a URL names.

    A file or folder under s3, gs or az is copied into `cache_folder()` once. Of a model of the hub, which is
    `hub:org/name@COMMIT`, config, tokenizer and safetensors are fetched into the hub's own cache.

    Raises:
        TooMany: it is to be fetched from the hub, where nothing is to be fetched.
        ValueError: nothing lies there.
    """
    text = str(path)
    if text.startswith(SCHEME):
        return _of_hub(text)
    if text.startswith(PACKAGE):
        return _HERE / text.removeprefix(PACKAGE)
    url = URL.fullmatch(text)
    if not url:
        return Path(text).expanduser()
    if url["scheme"] == "file":
        return Path("/", url["rest"])
    if url["rest"].partition("/")[0] == PLACEHOLDER:
        raise ValueError(f"{url['scheme']}://{url['rest']}: write your bucket's name for {PLACEHOLDER}.")
    folder, _, name = f"{url['scheme']}://{url['rest'].rstrip('/')}".rpartition("/")
    parent = Storage.at(folder)
    return parent.local(name) if parent.exists(name) else _copy(parent.folder(name))


def remote(path: str | Path) -> Storage | None:
    """The folder that a URL names in a bucket; None for any path of this machine's file system."""
    url = URL.fullmatch(str(path))
    if not url or url["scheme"] == "file":
        return None
    if url["rest"].partition("/")[0] == PLACEHOLDER:
        raise ValueError(f"{url['scheme']}://{url['rest']}: write your bucket's name for {PLACEHOLDER}.")
    return Storage.at(f"{url['scheme']}://{url['rest'].rstrip('/')}")


def in_package(path: Path) -> str | None:
    """How a file that the project ships is named on every machine; None for any other."""
    resolved = path.resolve()
    return f"{PACKAGE}{resolved.relative_to(_HERE).as_posix()}" if resolved.is_relative_to(_HERE) else None


def _of_hub(reference: str) -> Path:
    from pipelines.pretrained import hub
    from pipelines.stage import TooMany

    model = hub_model(reference, ask=_FETCHING.get())
    if not _FETCHING.get() and not hub.cached(model):
        raise TooMany(f"{model} is not fetched yet: run fetches it")
    return hub.encoder(model)


def _copy(storage: Storage) -> Path:
    """This machine's copy of a folder; what lies under one URL is taken to stay as it is."""
    copy = cache_folder() / "folders" / hashlib.sha256(storage.url.encode()).hexdigest()[:32]
    if copy.is_dir():
        return copy
    names = storage.list()
    if not names:
        raise ValueError(f"There is nothing at {storage.url}.")
    copy.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=copy.parent, prefix="."))
    for name in names:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(storage.local(name), target)
    try:
        os.rename(scratch, copy)
    except OSError:
        shutil.rmtree(scratch)
        if not copy.is_dir():  # no other process was faster
            raise
    return copy
