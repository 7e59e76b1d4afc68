"""What a run left behind, as one picture of it: its events, the manifests of its stages, the scores.

Everything is read from `<store>/runs/<recipe>/` and the stages' folders, so that the report of a run that was
killed, resumed or looked at from elsewhere is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.storage import Storage
from pipelines.report.contact import MADE, sheets

State = Literal["waiting", "running", "done", "failed"]


@dataclass
class StageView:
    """One stage, as far as it has come."""

    name: str
    kind: str = ""
    summary: str = ""
    state: State = "waiting"
    fingerprint: str = ""
    folder: str = ""
    reused: bool = False
    """Made by an earlier run, or for another recipe."""
    seconds: float | None = None
    error: str = ""
    done: float = 0
    total: float = 0
    unit: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[float, float]] = field(default_factory=dict)
    """Metric -> step -> value. A step that was reported again by a resumed run counts once."""
    pictures: dict[str, dict[float, bytes]] = field(default_factory=dict)
    """Name -> step -> PNG."""
    sheets: list[bytes] = field(default_factory=list)
    """The first images of a generated dataset, a PNG a row."""
    notes: list[str] = field(default_factory=list)
    drawn: str = ""
    """The fingerprint that curves and pictures belong to: a resumed stage goes on with them."""

    @property
    def counts(self) -> Mapping[str, Any]:
        return self.manifest.get("counts") or {}


@dataclass
class RunView:
    """A workflow run: its stages in the recipe's order."""

    recipe: str
    stages: list[StageView] = field(default_factory=list)
    resolved: str = ""
    """The recipe as it ran, YAML."""
    started: float | None = None
    ended: float | None = None
    failed: str = ""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """The last finished `evaluate` stage's metrics.json."""
    score_pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def state(self) -> State:
        if any(stage.state == "failed" for stage in self.stages) or self.failed:
            return "failed"
        if self.stages and all(stage.state == "done" for stage in self.stages):
            return "done"
        return "running" if self.started else "waiting"

    @property
    def tables(self) -> dict[str, Mapping[str, Any]]:
        """Stage name -> the table of a report that has one: title, columns, rows of text, what they say."""
        reports = {stage.name: stage.manifest.get("report") or {} for stage in self.stages}
        return {name: report["table"] for name, report in reports.items() if "table" in report}

    def of_kind(self, kind: str) -> list[StageView]:
        return [stage for stage in self.stages if stage.kind == kind]


def gather(store: Storage, recipe: str) -> RunView:
    """Reads a run from its store; a run without events is an empty one."""
    folder = store.folder("runs").folder(recipe)
    run = follow(recipe, _events(folder), folder=folder)
    if folder.exists("recipe.yaml"):
        run.resolved = folder.read("recipe.yaml").decode()
    for stage in run.stages:
        place = _place(store, stage)
        if place is None or not place.exists("manifest.json"):
            continue
        stage.manifest = json.loads(place.read("manifest.json"))
        stage.kind = stage.kind or str(stage.manifest.get("stage", ""))
        if stage.state in ("waiting", "running"):
            stage.state = "done"
        if stage.seconds is None:
            stage.seconds = (stage.manifest.get("execution") or {}).get("seconds")
        if stage.kind in MADE:
            name = f"{stage.name}-sheet-{str(stage.manifest.get('fingerprint'))[:12]}"
            stage.sheets = sheets(place, folder.folder("pictures"), name, kind=stage.kind)
        if stage.kind == "evaluate" and place.exists("metrics.json"):
            run.scores = json.loads(place.read("metrics.json"))
            names = [name for name in run.scores.get("pictures", {}) if place.exists(name)]
            run.score_pictures = {name: place.read(name) for name in names}
    return run


def follow(recipe: str, events: Iterable[Mapping[str, Any]], *, folder: Storage | None = None) -> RunView:
    """The state of a run after its events; what came before the last plan counts if a stage is the same."""
    run = RunView(recipe)
    kept: dict[str, StageView] = {}
    for event in events:
        kind, name = event.get("kind"), event.get("stage")
        if kind == "plan":
            run.stages = [_planned(entry, kept) for entry in event.get("stages", [])]
            run.started, run.ended, run.failed = event.get("time"), None, ""
            continue
        if kind == "run_end":
            run.ended = event.get("time")
            run.failed = str(event.get("error") or "")
            continue
        if not isinstance(name, str):
            continue
        stage = next((s for s in run.stages if s.name == name), None)
        if stage is None:
            stage = StageView(name)
            run.stages.append(stage)
        _apply(stage, event, folder)
        kept[name] = stage
    return run


def _planned(entry: Mapping[str, Any], kept: Mapping[str, StageView]) -> StageView:
    name, fingerprint = str(entry["name"]), str(entry.get("fingerprint") or "")
    stage = StageView(name)
    before = kept.get(name)
    if before is not None:
        stage = before
        stage.state, stage.error, stage.manifest, stage.seconds = "waiting", "", {}, None
    stage.kind = str(entry.get("stage") or stage.kind)
    stage.summary = str(entry.get("summary") or stage.summary)
    # unknown as long as an input is not finished: an earlier run's is not to stand for it
    stage.fingerprint, stage.folder = fingerprint, str(entry.get("folder") or "")
    if entry.get("state") == "done":
        stage.state, stage.reused = "done", True
    return stage


def _apply(stage: StageView, event: Mapping[str, Any], folder: Storage | None) -> None:
    kind = event["kind"]
    if kind == "stage_start":
        fingerprint = str(event.get("fingerprint") or stage.fingerprint)
        if fingerprint != stage.drawn:
            stage.curves, stage.pictures, stage.notes, stage.drawn = {}, {}, [], fingerprint
        stage.state, stage.reused, stage.fingerprint, stage.error = "running", False, fingerprint, ""
        stage.folder = str(event.get("folder") or stage.folder)
    elif kind == "progress":
        stage.done, stage.total = float(event.get("done") or 0), float(event.get("total") or 0)
        stage.unit = str(event.get("unit") or stage.unit)
    elif kind == "metrics":
        for key, value in event.get("values", {}).items():
            if isinstance(value, (int, float)):
                stage.curves.setdefault(key, {})[float(event.get("step") or 0)] = float(value)
    elif kind == "picture":
        data = _picture(event, folder)
        if data:
            stage.pictures.setdefault(str(event["name"]), {})[float(event.get("step") or 0)] = data
    elif kind == "note":
        stage.notes.append(str(event.get("text", "")))
    elif kind == "stage_end":
        stage.error = str(event.get("error") or "")
        stage.state = "failed" if stage.error else "done"
        stage.seconds = event.get("seconds") or stage.seconds
        stage.folder = str(event.get("folder") or stage.folder)
        stage.fingerprint = str(event.get("fingerprint") or stage.fingerprint)
        if isinstance(event.get("manifest"), Mapping):
            stage.manifest = event["manifest"]


def _picture(event: Mapping[str, Any], folder: Storage | None) -> bytes:
    """The journal keeps pictures as files beside it."""
    if isinstance(event.get("png"), bytes):
        return event["png"]
    name = event.get("file")
    return folder.read(name) if name and folder is not None and folder.exists(name) else b""


def _events(folder: Storage) -> Iterator[dict[str, Any]]:
    if not folder.exists("events.jsonl"):
        return
    for line in folder.read("events.jsonl").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a driver that was killed
            continue
        if isinstance(event, dict):
            yield event


def _place(store: Storage, stage: StageView) -> Storage | None:
    """The stage's folder in this store, wherever the store has moved since; else what the events say."""
    if stage.kind and stage.fingerprint:
        place = store.folder(stage.kind).folder(stage.fingerprint)
        if place.exists("manifest.json"):
            return place
    return Storage.at(stage.folder) if stage.folder else None
