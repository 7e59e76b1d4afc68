"""What a recipe would run, and why: found from what the store holds, without torch, Ray or MLflow."""

from __future__ import annotations

import difflib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cluster.storage import Storage
from pipelines.places import fetching
from pipelines.runner.artifacts import Source, finished, locate, opened
from pipelines.runner.fingerprint import AnyStage, Identity
from pipelines.runner.retry import latest, retried
from pipelines.stage import Input, Stage, Tell, TooMany

if TYPE_CHECKING:
    from cluster.mapping import Executor

State = Literal["done", "run", "after", "missing"]
MISSING = (ValueError, OSError)
"""How it shows that what a stage reads is not there, or cannot be read."""


class Recipe(Protocol):
    """Named stages; an input names another stage, or a place outside the recipe by a `/` or `:`."""

    @property
    def name(self) -> str: ...
    @property
    def stages(self) -> Mapping[str, AnyStage]: ...


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage of a recipe, as far as it is known before it runs."""

    name: str
    stage: AnyStage
    state: State
    reason: str
    """Why it runs, or what it waits for; "" if it is done."""
    identity: Identity | None = None
    """None as long as an input is not finished."""
    folder: Storage | None = None
    """Where its output lies or will lie."""
    checkpoints: Storage | None = None
    sources: Mapping[str, Source | None] = field(default_factory=dict)
    """Input (`field`, or `field.0`, ... where a field names several) -> where it lies."""

    @property
    def fingerprint(self) -> str | None:
        return self.identity.fingerprint if self.identity else None

    def open(self) -> dict[str, Any]:
        """The inputs as the stage takes them, by field."""
        return opened(self.stage, self.sources)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "stage": self.stage.name(),
            "state": self.state,
            "reason": self.reason,
            "fingerprint": self.fingerprint,
            "folder": self.folder.url if self.folder else None,
            "summary": self.stage.summary(),
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    recipe: str
    store: str
    stages: tuple[PlannedStage, ...]
    """Each behind those it reads."""

    def __getitem__(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def done(self) -> bool:
        return all(stage.state == "done" for stage in self.stages)


class Planner:
    """Follows a recipe while it runs: a stage is known as soon as its inputs are finished."""

    def __init__(
        self,
        recipe: Recipe,
        store: Storage,
        *,
        until: str | None = None,
        force: Iterable[str] = (),
        lenient: bool = False,
    ) -> None:
        """`until`: only this stage and what it needs. `force`: stages that run though they are finished.
        `lenient`: what a stage reads from outside may be missing still; its state says so.

        Raises:
            ValueError: an unknown name, a stage that reads none or the wrong kind, or stages in a circle.
        """
        self.recipe, self.store, self.lenient = recipe, store, lenient
        self.order = _order(recipe)
        self.forced = set(force)
        for name in (*self.forced, *([until] if until else [])):
            if name not in recipe.stages:
                raise ValueError(f"There is no stage {name!r} in {recipe.name}{_near(name, recipe.stages)}")
        if until is not None:
            needed = _needed(recipe, until)
            self.order = [name for name in self.order if name in needed]
        self._retried = retried(store, recipe.name)
        self.executor: Executor | None = None
        """Where what must be found out before planning may be run, once there is one."""
        self.tell: Tell | None = None
        """Told how far that is."""
        self._known: dict[str, PlannedStage] = {}
        self._registered: dict[str, Source] = {}
        self._lock = threading.RLock()

    def plan(self) -> Plan:
        with self._lock:
            stages = tuple(self.look(name) for name in self.order)
        return Plan(recipe=self.recipe.name, store=self.store.url, stages=stages)

    def look(self, name: str) -> PlannedStage:
        """The stage as it stands now; looked up again until it is done."""
        known = self._known.get(name)
        if known is None or known.state == "after":
            try:
                known = self._look(name)
            except MISSING as error:
                if not self.lenient:
                    raise
                stage, reason = self.recipe.stages[name], next(iter(str(error).splitlines()), "unreadable")
                known = PlannedStage(name=name, stage=stage, state="missing", reason=reason)
            self._known[name] = known
        return known

    def settle(self, name: str, executor: Executor, tell: Tell, fetch: Tell | None = None) -> PlannedStage:
        """The stage, with all found out that is to be known before it runs, however long that takes.

        `fetch` is told how many MB there are of foreign weights.
        """
        self.executor, self.tell = executor, tell
        planned = self._look(name, fetch=fetch or tell)
        with self._lock:
            self._known[name] = planned
        return planned

    def forget(self) -> None:
        """Has every stage looked up again."""
        with self._lock:
            self._known.clear()

    def finish(self, name: str) -> None:
        """Tells that the stage's output is there now."""
        with self._lock:
            self.forced.discard(name)
            self._known.pop(name, None)
            state = self.look(name).state
        if state != "done":
            raise ValueError(f"{name} ended and its inputs have changed meanwhile; run again.")

    def _look(self, name: str, *, fetch: Tell | None = None) -> PlannedStage:
        stage = self.recipe.stages[name]
        sources: dict[str, Source | None] = {}
        waiting, pending = [], []
        for field_name, reference in stage.named().items():
            mark = stage.mark_of(field_name)
            kind = mark.kind
            if reference is None:
                sources[field_name] = None
            elif reference in self.recipe.stages:
                made = self.look(reference)
                if made.state != "done" or made.folder is None:
                    waiting.append(reference)
                else:
                    sources[field_name] = Source(kind=kind, url=made.folder.url, reference=reference)
            else:
                try:
                    sources[field_name] = self._locate(reference, mark, fetch)
                except TooMany as error:
                    pending.append(str(error))
        if waiting:
            after = "after " + " and ".join(waiting)
            return PlannedStage(name=name, stage=stage, state="after", reason=after, sources=sources)
        if pending:
            reason = " and ".join(pending)
            return PlannedStage(name=name, stage=stage, state="run", reason=reason, sources=sources)
        inputs = opened(stage, sources)
        if implied := stage.implied(inputs, self.store):
            sources |= implied
            inputs = opened(stage, sources)
        try:
            with fetching(fetch is not None):
                stage, identity = latest(stage, inputs, self._retried, self._prepared)
        except TooMany as error:
            return PlannedStage(name=name, stage=stage, state="run", reason=str(error), sources=sources)
        folder = self.store.folder(stage.name()).folder(identity.fingerprint)
        checkpoints = None
        if isinstance(stage, Stage):
            checkpoints = self.store.folder("checkpoints").folder(identity.lineage(stage.length))
        state, reason = "done", ""
        if name in self.forced:
            state, reason = "run", "forced"
        elif not finished(folder):
            state, reason = "run", self._why(name, identity, folder)
        return PlannedStage(
            name=name,
            stage=stage,
            state=state,
            reason=reason,
            identity=identity,
            folder=folder,
            checkpoints=checkpoints,
            sources=sources,
        )

    def _prepared(self, stage: AnyStage) -> AnyStage:
        return stage.prepared(self.store, self.executor, self.tell)

    def _locate(self, reference: str, mark: Input, fetch: Tell | None) -> Source:
        """An alias is looked up once: a run goes on with what it began with, wherever the alias moves."""
        if not reference.startswith("models:/"):
            ask = not self.lenient
            return locate(reference, mark.kind, store=self.store, part=mark.part, fetch=fetch, ask=ask)
        if reference not in self._registered:
            self._registered[reference] = locate(reference, mark.kind, store=self.store)
        return self._registered[reference]

    def _why(self, name: str, identity: Identity, folder: Storage) -> str:
        committed = sum(n.endswith(".parquet") for n in folder.list())
        if committed:
            return f"{committed} shard{'s are' if committed > 1 else ' is'} done"
        before = last_identities(self.store, self.recipe.name).get(name)
        if not before:
            return "new"
        changed = changes(before, identity)
        if changed.startswith("retry ") and ", " not in changed:
            return f"retries the rejects of {str(identity.meaning['retry'])[:8]}"
        return f"changed: {changed}" if changed else "not finished"


def plan(
    recipe: Recipe,
    store: Storage,
    *,
    until: str | None = None,
    force: Iterable[str] = (),
    lenient: bool = False,
) -> Plan:
    """What would run, and why; `lenient` as for the planner.

    Raises:
        ValueError: the recipe's inputs do not fit together.
    """
    return Planner(recipe, store, until=until, force=force, lenient=lenient).plan()


LAST = "last.json"
"""In a run's folder: the identity that each of its stages had when it last started."""


def last_identities(store: Storage, recipe: str) -> dict[str, dict[str, Any]]:
    folder = store.folder("runs").folder(recipe)
    try:
        return json.loads(folder.read(LAST))
    except (FileNotFoundError, ValueError):
        return {}


def changes(before: Mapping[str, Any], now: Identity) -> str:
    """The fields in which two identities of a stage differ: "size 48 -> 64, images"."""
    differences = []
    for part in ("meaning", "inputs", "external"):
        old, new = _flat(before.get(part, {})), _flat(getattr(now, part))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                told = part == "meaning" and len(f"{old.get(key)}{new.get(key)}") < 40
                differences.append(f"{key} {old.get(key)} -> {new.get(key)}" if told else key)
    if before.get("version") != now.version:
        differences.append(f"version {before.get('version')} -> {now.version}")
    return ", ".join(differences)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _order(recipe: Recipe) -> list[str]:
    """Stage names, each behind those it reads."""
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"The stages {' -> '.join((*above, name))} wait for one another.")
        if name in order:
            return
        for needed in _reads(recipe, name):
            visit(needed, (*above, name))
        order.append(name)

    for name in recipe.stages:
        visit(name, ())
    return order


def _reads(recipe: Recipe, name: str) -> list[str]:
    """The stages that a stage reads, checked for existence and kind."""
    stage = recipe.stages[name]
    reads = []
    for field_name, reference in stage.named().items():
        mark = stage.mark_of(field_name)
        if reference is None or "/" in reference or ":" in reference:
            continue
        if reference not in recipe.stages:
            raise ValueError(
                f"{name}.{field_name}: there is no stage {reference!r}{_near(reference, recipe.stages)}"
            )
        made = recipe.stages[reference]
        if made.output != mark.kind:
            raise ValueError(
                f"{name}.{field_name} takes a {mark.kind}; {reference} ({made.name()}) makes a {made.output}."
            )
        reads.append(reference)
    return reads


def _needed(recipe: Recipe, until: str) -> set[str]:
    needed = {until}
    for name in _reads(recipe, until):
        needed |= _needed(recipe, name)
    return needed


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else "."
