"""What nothing in a store uses, and its removal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.lease import Lease
from cluster.storage import LocalStorage, Storage
from pipelines.dataset import MANIFEST
from pipelines.inspection.reach import (
    CHECKPOINTS,
    FINGERPRINT,
    PRETRAINED,
    Reach,
    in_progress,
    in_use_now,
    manifest_of,
    reach,
)
from pipelines.pretrained.adoption import forget
from pipelines.runner.reuse import NOTE
from pipelines.runner.uses import SWEEP

Reason = Literal["unused", "unfinished", "version", "checkpoints", "source", "leftover"]
REASONS: dict[Reason, str] = {
    "unused": "no recipe, alias or run uses it",
    "unfinished": "not finished, and no run goes on with it",
    "version": "a registered version without an alias",
    "checkpoints": "of no training that is used",
    "source": "what was read of a source; read again where a recipe needs it",
    "leftover": "half-written, by a process that ended",
}

SOURCES = "cache/sources"
"""Where surveys of sources lie."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """A folder of a store, or a half-written file in it."""

    place: str
    """"ingest/FINGERPRINT", or the file's name in the store."""
    reason: Reason
    detail: str = ""
    bytes: int
    files: int
    changed: float
    """When anything in it was last changed, seconds since 1970."""

    @property
    def stage(self) -> str:
        return self.place.partition("/")[0]


@dataclass
class Findings:
    """A store, looked through."""

    garbage: list[Garbage] = field(default_factory=list)
    young: list[Garbage] = field(default_factory=list)
    """Used by nothing, and changed too lately to be removed."""
    used_bytes: int = 0
    used_folders: int = 0
    unsure: list[str] = field(default_factory=list)
    """Trainings whose checkpoints cannot be told; because of them all checkpoints stay."""


def find(store: Storage, *, grace: float, recipes: Iterable[Any] = (), registry: bool = True) -> Findings:
    """Looks through the folders of stages and of checkpoints, and for half-written files everywhere.

    Args:
        grace: seconds that a thing must have lain unchanged to be garbage.
        recipes, registry: as for `reach`.

    Raises:
        ValueError: there is no store, or what is used cannot be told.
    """
    if not store.folders():
        raise ValueError(f"There is no store at {store.url}.")
    used = reach(store, recipes=recipes, registry=registry)
    found, before = Findings(unsure=used.unsure), time.time() - grace
    for place in _folders(store):
        one = _look(store, place, used)
        if place in used or (one.stage == CHECKPOINTS and (used.unsure or _busy(store, place))):
            found.used_bytes += one.bytes
            found.used_folders += 1
        else:
            (found.garbage if one.changed < before else found.young).append(one)
    for name in store.folder(SOURCES).folders():
        one = _look(store, f"{SOURCES}/{name}", used)
        (found.garbage if one.changed < before else found.young).append(one)
    gone = {one.place for one in found.garbage}
    for name, (size, changed) in store.files(partial=True).items():
        if not any(name.startswith(f"{place}/") for place in gone):
            left = Garbage(place=name, reason="leftover", bytes=size, files=1, changed=changed)
            (found.garbage if changed < before else found.young).append(left)
    return found


def sweep(
    store: Storage,
    *,
    grace: float,
    recipes: Iterable[Any] = (),
    registry: bool = True,
    patience: float = 30.0,
) -> Iterator[tuple[Garbage, str]]:
    """Removes what `find` finds, and tells each with "" or why it was left after all.

    While it runs, runs that begin wait; see `pipelines.runner.uses`.

    Raises:
        LeaseLost: it stood still so long that others took it for dead.
    """
    recipes = list(recipes)
    lease = Lease(store.folder(SWEEP), patience=patience)
    lease.acquire()
    with lease.held():
        for garbage in find(store, grace=grace, recipes=recipes, registry=registry).garbage:
            lease.beat()
            why = _taken(store, garbage)
            if not why:
                _remove(store, garbage)
            yield garbage, why
    for name in lease.storage.list():  # so that leases do not pile up; the last tells that it was released
        if not name.startswith(f"{lease.number:06d}."):
            lease.storage.delete(name)


def _taken(store: Storage, garbage: Garbage) -> str:
    """Looks once more, immediately before it is removed."""
    if garbage.reason == "leftover":
        with contextlib.suppress(FileNotFoundError):
            assert isinstance(store, LocalStorage)
            state = (store.path / garbage.place).stat()
            return "it is written to" if state.st_mtime != garbage.changed else ""
        return ""
    by = in_use_now(store).get(garbage.place)
    if by:
        return f"used now by the {by}"
    if garbage.reason == "source" and in_progress(store):
        return "a run goes on, which may read the source"
    if garbage.stage == CHECKPOINTS and _busy(store, garbage.place):
        return "a training goes on there"
    stage, _, name = garbage.place.partition("/")
    changed = max((c for _, c in store.folder(stage).folder(name).files().values()), default=garbage.changed)
    return "it has changed meanwhile" if changed > garbage.changed else ""


def _remove(store: Storage, garbage: Garbage) -> None:
    """The manifest first, then the indexes: at no time does a part of a dataset look whole."""
    if garbage.reason == "leftover":
        assert isinstance(store, LocalStorage)
        (store.path / garbage.place).unlink(missing_ok=True)
        return
    stage, _, name = garbage.place.partition("/")
    folder = store.folder(stage).folder(name)
    folder.delete(MANIFEST)
    for file in folder.list():
        if file.endswith(".parquet"):
            folder.delete(file)
    folder.delete_folder()
    if stage == PRETRAINED:
        forget(store, name)


def _folders(store: Storage) -> Iterator[str]:
    """Every output of a stage, and all checkpoints; whatever else lies in a store is left alone."""
    from pipelines.stages import STAGES

    for stage in store.folders():
        inner = store.folder(stage)
        for name in inner.folders():
            if FINGERPRINT.fullmatch(name):
                folder = inner.folder(name)
                if (
                    stage in STAGES
                    or stage in (CHECKPOINTS, PRETRAINED)
                    or folder.exists(NOTE)
                    or manifest_of(folder).get("stage") == stage
                ):
                    yield f"{stage}/{name}"


def _look(store: Storage, place: str, used: Reach) -> Garbage:
    stage, _, name = place.partition("/")
    folder = store.folder(stage).folder(name)
    files = folder.files()
    reason: Reason = "unused" if MANIFEST in files else "unfinished"
    if stage == CHECKPOINTS:
        reason = "checkpoints"
    elif place.startswith(f"{SOURCES}/"):
        reason = "source"
    elif place in used.versions:
        reason = "version"
    return Garbage(
        place=place,
        reason=reason,
        detail=used.versions.get(place, ""),
        bytes=sum(size for size, _ in files.values()),
        files=len(files),
        changed=max((changed for _, changed in files.values()), default=_made(folder)),
    )


def _made(folder: Storage) -> float:
    """Of a folder without files."""
    try:
        return folder.path.stat().st_mtime if isinstance(folder, LocalStorage) else 0.0
    except FileNotFoundError:
        return time.time()


def _busy(store: Storage, place: str) -> bool:
    stage, _, name = place.partition("/")
    return Lease(store.folder(stage).folder(name).folder("lease")).busy()
