"""What a run uses of a store, told before it relies on it, so that `gc` takes nothing from under it.

A file in `runs/RECIPE/live` says it of a run in progress, `runs/RECIPE/uses.json` of the last one that ended;
what a killed run left in `live` counts until the next one ends. A run that begins while gc deletes waits till
that is over, and looks again at what is there; gc looks for runs after it has said that it begins. So one of
the two sees the other, whatever the order.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.lease import Lease, is_gone, owner
from cluster.storage import Storage
from pipelines.runner.plan import Plan, Planner

USES = "uses.json"
LIVE = "live"
SWEEP = "gc"
"""Folder of the store where gc holds its lease while it deletes."""
REFRESH = 300.0
"""Seconds after which a run in progress says again that it is."""
SILENCE = 86_400.0
"""Seconds after which a run on another machine that has said nothing is taken for dead."""

Used = dict[str, list[str]]
"""Stage of a recipe -> places: "ingest/FINGERPRINT", "checkpoints/LINEAGE", or a URL outside the recipe."""


@dataclass
class Uses:
    """Those of one run. Call it with each event, so that a long run is not taken for dead."""

    store: Storage
    recipe: str
    partial: bool = False
    """Whether only some of the recipe's stages are planned: of the others, what is known is kept."""
    patience: float = 30.0
    """Seconds that gc's heartbeat may stand still before it is taken for dead."""
    told: Used = field(default_factory=dict)
    _name: str = field(default_factory=lambda: f"{LIVE}/{uuid.uuid4().hex}.json")
    _last: float = 0.0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def folder(self) -> Storage:
        return self.store.folder("runs").folder(self.recipe)

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self.told and time.monotonic() - self._last > REFRESH:
            self._write()

    def settle(self, planner: Planner) -> Plan:
        """A plan of which gc takes nothing any more."""
        with self._lock:
            while True:
                planned = planner.plan()
                now = used(planned)
                if all(set(places) <= set(self.told.get(stage, ())) for stage, places in now.items()):
                    return planned
                for stage, places in now.items():
                    self.told[stage] = sorted({*self.told.get(stage, ()), *places})
                self._write()
                if not self._waited():
                    return planned
                planner.forget()

    @contextlib.contextmanager
    def held(self, planner: Planner) -> Iterator[None]:
        """While the block runs, the run is in progress; what it used is kept behind it."""
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                if self.told:
                    self.keep(planner.plan())
                    for name in (name for name, run in live(self.folder).items() if not run.alive):
                        self.folder.delete(f"{LIVE}/{name}")
                    self.folder.delete(self._name)

    def keep(self, planned: Plan) -> None:
        """Makes this what the recipe's last run used; of stages that are not known yet, the old is kept."""
        known = read_uses(self.folder)
        names = {stage.name for stage in planned.stages}
        now = {name: places for name, places in known.items() if name in names or self.partial} | used(
            planned
        )
        if now != known:
            self.folder.replace(USES, json.dumps(now, indent=1, sort_keys=True).encode())

    def _write(self) -> None:
        self._last = time.monotonic()
        said = {"owner": json.loads(owner()), "uses": self.told}
        self.folder.replace(self._name, json.dumps(said, indent=1, sort_keys=True).encode())

    def _waited(self) -> bool:
        """Whether gc was deleting; it has ended then."""
        lease = Lease(self.store.folder(SWEEP), patience=self.patience)
        if not lease.busy():
            return False
        lease.acquire()
        lease.release()
        return True


def used(planned: Plan) -> Used:
    """What the stages of a plan read and make, as far as it is known."""
    found: Used = {}
    for stage in planned.stages:
        places = [f"{stage.stage.name()}/{stage.fingerprint}"] if stage.fingerprint else []
        if stage.checkpoints is not None:
            places.append(f"checkpoints/{stage.checkpoints.url.rpartition('/')[2]}")
        places += [source.url for source in stage.sources.values() if source is not None]
        if places:
            found[stage.name] = sorted(set(places))
    return found


def read_uses(folder: Storage) -> Used:
    """Of a recipe's last run, from the run's folder."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json.loads(folder.read(USES))
        if isinstance(found, dict):
            return found
    return {}


def note_done(planner: Planner, *, partial: bool = False) -> Plan:
    """Makes a plan in which nothing is left to do what the recipe's last run used.

    Gives the plan as it is then: what gc was deleting meanwhile is to be made again.
    """
    uses = Uses(planner.store, planner.recipe.name, partial=partial)
    try:
        with uses.held(planner):
            return uses.settle(planner)
    except OSError:  # a store that may only be read
        return planner.plan()


@dataclass(frozen=True)
class Running:
    """A run that has not ended, or that was killed."""

    uses: Used
    alive: bool


def live(folder: Storage) -> dict[str, Running]:
    """By the name of its file in `live`; from the run's folder."""
    found = {}
    for name, (_, changed) in folder.folder(LIVE).files().items():
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            said = json.loads(folder.folder(LIVE).read(name))
            alive = not is_gone(said["owner"]) and time.time() - changed < SILENCE
            found[name] = Running(said["uses"], alive)
    return found
