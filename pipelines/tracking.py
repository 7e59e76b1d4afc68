"""The record of a run in MLflow: one run for the workflow, a child for each stage that ran.

`Tracker` is a listener of the runner's events. It appends to a spool and returns; a process of its own
(`pipelines.recording.flush`) carries the spool to MLflow. A run in which nothing is executed leaves no trace
and costs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.jobs import current
from cluster.storage import LocalStorage, Storage, cache_folder
from pipelines.recording.spool import AWAY, Record, Spool, files

Event = Mapping[str, Any]
HOPELESS = 0.5
"""Seconds that the end of a run waits for an MLflow that did not answer."""
STATUS = {"done": "FINISHED", "failed": "FAILED"}
"""The runner's word -> MLflow's; a run that was interrupted is KILLED."""
RATE_EVERY = 5.0
"""Seconds between two recorded rates of a stage."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a recipe's record goes."""

    uri: str
    """MLflow's tracking URI."""
    experiment: str
    artifacts: str | None
    """Where a new experiment keeps its artifacts; a server's own choice if None."""
    spool: Path

    @staticmethod
    def of(store: Storage, recipe: str) -> Destination:
        """`MLFLOW_TRACKING_URI`, else SQLite in the store; `ValueError` where that is in a bucket."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None
        if isinstance(store, LocalStorage):
            spool = store.path / "runs" / recipe / "spool"
            if not uri:
                uri = f"sqlite:///{store.path / 'mlflow.db'}"
                artifacts = (store.path / "mlartifacts").as_uri()
        else:
            if not uri:
                raise ValueError(
                    f"{store.url} cannot hold MLflow's database; "
                    "start `mlflow server` and set MLFLOW_TRACKING_URI."
                )
            name = hashlib.sha256(store.url.encode()).hexdigest()[:16]
            spool = cache_folder() / "spool" / name / recipe
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "latentmill"
        return Destination(uri=uri, experiment=experiment, artifacts=artifacts, spool=spool)

    def flush(self) -> subprocess.Popen[bytes]:
        """Starts the process that flushes the spool; it ends by itself when the spool is empty."""
        self.spool.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pipelines.recording.flush", str(self.spool)]
        command += ["--uri", self.uri, "--experiment", self.experiment]
        if self.artifacts:
            command += ["--artifacts", self.artifacts]
        with open(self.spool / "flush.log", "ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.spool,  # what MLflow drops where it runs is dropped here
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt from the keyboard is the driver's to handle
            )


def environment() -> dict[str, str]:
    """For a process that uses MLflow: no telemetry, and little patience with a dead server."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}
    quiet |= {
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    return {**patience, **os.environ, **quiet, "PYTHONPATH": path}


def leftovers(store: Storage) -> list[Destination]:
    """Destinations of the recipes in a local store whose spool still holds something."""
    if not isinstance(store, LocalStorage):
        return []
    names = sorted(path.parent.name for path in (store.path / "runs").glob("*/spool"))
    return [to for name in names if files((to := Destination.of(store, name)).spool)]


class Tracker:
    """Call it with each event of the runner; `close` when the run is over.

    A stage is recorded from its `stage_start`, with what its manifest says at its `stage_end`. A run that was
    interrupted, and the runs that finish it, are one MLflow run.
    """

    def __init__(self, store: Storage, recipe: str, *, resolved: str = "") -> None:
        """`resolved`: the recipe as YAML with all flags merged, kept as an artifact."""
        self.destination = Destination.of(store, recipe)
        self._store = store
        self._recipe = recipe
        self._resolved = resolved
        self._spool: Spool | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._run = ""
        self._stages: dict[str, str] = {}
        self._rates: dict[str, tuple[float, float]] = {}
        self._status = "KILLED"

    def __call__(self, event: Event) -> None:
        kind, stage = event["kind"], event.get("stage")
        if kind == "run_end":
            self._status = STATUS.get(str(event.get("state") or "done"), "KILLED")
        elif kind == "stage_start" and stage:
            self._start(stage, event)
        elif self._spool is not None and stage in self._stages:
            handler = {
                "metrics": self._metrics,
                "progress": self._progress,
                "picture": self._picture,
                "stage_end": self._end,
            }.get(kind)
            if handler:
                handler(event, self._stages[stage])

    def close(self, *, seconds: float = 20.0, report: Path | None = None) -> bool:
        """Ends the record and waits a bounded time for MLflow. True: all is flushed (or nothing was to be).

        What is left waits for the next run of the recipe or for `latentmill ui`. An MLflow that did not
        answer the last time is hardly waited for.
        """
        if self._spool is None or self._process is None:
            return True
        if report is not None:
            self._append("artifact", self._run, name="report.html", path=str(report))
        self._append("run_end", self._run, status=self._status)
        if self._status == "FINISHED":
            self._identity.unlink(missing_ok=True)
        self._spool.close()
        self._spool = None
        if self._away.exists():
            seconds = min(seconds, HOPELESS)
        try:
            return self._process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False

    @property
    def _identity(self) -> Path:
        return self.destination.spool / "open.json"

    @property
    def _away(self) -> Path:
        return self.destination.spool / AWAY

    def _open(self) -> None:
        self._spool = Spool(self.destination.spool)
        self._away.unlink(missing_ok=True)
        try:
            self._run = json.loads(self._identity.read_text())["run"]
        except (FileNotFoundError, ValueError, KeyError):
            self._run = uuid.uuid4().hex
            self._identity.write_text(json.dumps({"run": self._run}))
        self._append("run", self._run, name=self._recipe, recipe=self._resolved, tags=job_tags())
        self._process = self.destination.flush()

    def _start(self, stage: str, event: Event) -> None:
        if self._spool is None:
            self._open()
        # the fingerprint is part of it: with another parameter it is another stage run
        identity = f"{self._run}/{stage}/{event.get('fingerprint') or ''}"
        self._stages[stage] = identity
        self._append("stage", identity, name=stage, parent=self._run, time=_milliseconds(event))

    def _metrics(self, event: Event, identity: str) -> None:
        values = {k: float(v) for k, v in event["values"].items() if isinstance(v, (int, float))}
        if values:
            self._append(
                "metrics", identity, step=int(event["step"]), values=values, time=_milliseconds(event)
            )

    def _progress(self, event: Event, identity: str) -> None:
        now, done = event.get("time") or time.time(), float(event["done"])
        then, before = self._rates.setdefault(identity, (now, done))
        if now - then >= RATE_EVERY and done > before:
            self._rates[identity] = (now, done)
            values = {f"{event.get('unit') or 'items'}_per_second": (done - before) / (now - then)}
            self._append("metrics", identity, step=int(done), values=values, time=_milliseconds(event))

    def _picture(self, event: Event, identity: str) -> None:
        data = base64.b64encode(event["png"]).decode()
        step = int(event.get("step") or 0)
        self._append("picture", identity, name=event["name"], step=step, png=data, time=_milliseconds(event))

    def _end(self, event: Event, identity: str) -> None:
        stage = event["stage"]
        failed = bool(event.get("error"))
        manifest = event.get("manifest") or self._manifest(event)
        if manifest and not failed:
            self._append("facts", identity, **facts(manifest, url=str(event.get("folder") or "")))
            counts = {
                k: float(v) for k, v in manifest.get("counts", {}).items() if isinstance(v, (int, float))
            }
            if event.get("seconds"):
                counts["seconds"] = float(event["seconds"])
                if counts.get("committed"):
                    counts["samples_per_second"] = counts["committed"] / counts["seconds"]
            if counts:
                self._append("metrics", identity, step=0, values=counts, time=_milliseconds(event))
            if manifest.get("kind") == "snapshot":
                self._model(stage, identity, manifest, event)
        status = "FAILED" if failed else "FINISHED"
        self._append("stage_end", identity, status=status, time=_milliseconds(event))
        del self._stages[stage]

    def _model(self, stage: str, identity: str, manifest: Mapping[str, Any], event: Event) -> None:
        name, url = f"{self._recipe}-{stage}", str(event.get("folder") or "")
        self._append("model", identity, name=name, url=url, manifest=manifest, time=_milliseconds(event))

    def _manifest(self, event: Event) -> dict[str, Any]:
        folder = event.get("folder")
        if not folder:
            return {}
        try:
            return json.loads(Storage.at(folder).read("manifest.json"))
        except (OSError, ValueError):  # the record never stops a run
            return {}

    def _append(self, kind: str, identity: str, **record: Any) -> None:
        assert self._spool is not None
        full: Record = {"kind": kind, "id": identity, "time": int(time.time() * 1000), **record}
        self._spool.append(full)


def job_tags() -> dict[str, str]:
    """The way from an MLflow run to the Ray job that it was last made by; nothing outside a job."""
    job = current()
    if job is None:
        return {}
    page = f"{job.metadata.get('dashboard', '')}/#/jobs/{job.id}"
    return {
        "latentmill.job": job.id,
        "latentmill.dashboard": page,
        "mlflow.note.content": f"Ray job [{job.id}]({page}), store `{job.metadata.get('store', '')}`",
    }


def facts(manifest: Mapping[str, Any], *, url: str) -> dict[str, Any]:
    """What a manifest says of a stage run: parameters, tags and inputs (name, digest, URL) for MLflow."""
    params = flatten(manifest.get("meaning", {}))
    tags = {"stage": manifest.get("stage", ""), "fingerprint": manifest.get("fingerprint", ""), "url": url}
    tags |= {"version": manifest.get("version", ""), "format": manifest.get("format", "")}
    tags |= {
        f"column.{name}": column.get("digest", "") for name, column in manifest.get("columns", {}).items()
    }
    tags |= {
        f"input.{field}": f"{entry.get('reference')}, version {entry['model_version']}"
        for field, entry in (manifest.get("inputs") or {}).items()
        if isinstance(entry, Mapping) and "model_version" in entry
    }
    inputs = [
        {
            "field": field,
            "name": f"{field}-{str(entry.get('fingerprint', ''))[:12]}",
            "digest": str(entry.get("digest") or entry.get("fingerprint", "")),
            "url": str(entry.get("url") or entry.get("fingerprint", "")),
        }
        for field, entry in (manifest.get("inputs") or {}).items()
        if isinstance(entry, Mapping)
    ]
    return {"params": params, "tags": tags, "inputs": inputs}


def flatten(tree: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _milliseconds(event: Event) -> int:
    return int((event.get("time") or time.time()) * 1000)
