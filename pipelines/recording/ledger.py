"""Spooled records as MLflow runs, metrics, pictures and model versions, none of them twice.

A workflow is a run with the tag `latentmill.id`, a stage its child with the same tag; both are found by it
again whichever process looks. Imported by the flusher alone: mlflow takes 1.5 s.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import sys
import tempfile
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipelines.registry import CANDIDATE, Registry, RegistryError

ID = "latentmill.id"
WRITER = "latentmill.writer"
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}
"""Error codes that trying again does not mend."""

Record = dict[str, Any]


class Ledger:
    def __init__(self, uri: str, *, experiment: str, artifacts: str | None) -> None:
        self.uri = uri
        self.client = MlflowClient(uri, uri)
        self.experiment = self._experiment(experiment, artifacts)
        self._runs: dict[str, str] = {}
        self._metrics: dict[str, list[Metric]] = defaultdict(list)
        self._known: dict[str, dict[str, set[int]]] = {}

    def write(self, record: Record, *, writer: str) -> None:
        """Writes one record. What MLflow refuses for good is dropped with a line on stderr."""
        try:
            getattr(self, f"_write_{record['kind']}")(record, writer)
        except (MlflowException, RegistryError) as error:
            if error.error_code not in REFUSED:
                raise
            print(f"refused: {record['kind']}: {error}", file=sys.stderr, flush=True)

    def collect(self, record: Record) -> None:
        """Keeps metrics until `flush_metrics`, less the steps that their run has already."""
        run = self._run(record)
        known = self._known.setdefault(run, {})
        for key, value in record["values"].items():
            key = _key(key)
            if key not in known:
                known[key] = {metric.step for metric in self.client.get_metric_history(run, key)}
            if record["step"] not in known[key] and math.isfinite(value):
                known[key].add(record["step"])
                self._metrics[run].append(Metric(key, float(value), record["time"], record["step"]))

    def flush_metrics(self) -> None:
        while self._metrics:
            run, metrics = next(iter(self._metrics.items()))
            for start in range(0, len(metrics), 1000):  # MLflow's limit for a batch
                self.client.log_batch(run, metrics=metrics[start : start + 1000])
            del self._metrics[run]

    def abandon(self, writer: str) -> None:
        """Closes what a writer that was killed left running."""
        for run in self._search(f"tags.`{WRITER}` = '{writer}' and attributes.status = 'RUNNING'"):
            self.client.set_terminated(run.info.run_id, "KILLED")

    def _write_run(self, record: Record, writer: str) -> None:
        run = self._open(record, name=record["name"], writer=writer, parent=None)
        self.client.log_text(run, record["recipe"], "recipe.yaml")
        for key, value in record.get("tags", {}).items():
            self.client.set_tag(run, key, value)

    def _write_run_end(self, record: Record, writer: str) -> None:
        self.client.set_terminated(self._run(record), record["status"], record["time"])

    def _write_stage(self, record: Record, writer: str) -> None:
        parent = self._run({"id": record["parent"]})
        self._open(record, name=record["name"], writer=writer, parent=parent)

    def _write_stage_end(self, record: Record, writer: str) -> None:
        self.client.set_terminated(self._run(record), record["status"], record["time"])

    def _write_facts(self, record: Record, writer: str) -> None:
        run = self._run(record)
        params = [Param(_key(k), str(v)[:6000]) for k, v in record["params"].items()]
        for start in range(0, len(params), 100):  # MLflow's limit for a batch
            self.client.log_batch(run, params=params[start : start + 100])
        tags = [RunTag(f"latentmill.{k}", str(v)[:8000]) for k, v in record["tags"].items()]
        self.client.log_batch(run, tags=tags)
        inputs = [
            DatasetInput(
                Dataset(
                    name=i["name"],
                    digest=i["digest"][:36],
                    source_type="local",
                    source=json.dumps({"uri": i["url"]}),
                ),
                tags=[InputTag("mlflow.data.context", i["field"])],
            )
            for i in record["inputs"]
        ]
        if inputs:
            self.client.log_inputs(run, inputs)

    def _write_picture(self, record: Record, writer: str) -> None:
        """The names are those of `MlflowClient.log_image`, which the UI shows as a slider over steps."""
        from PIL import Image

        run = self._run(record)
        key = re.sub(r"[^\w\-. ]", "-", record["name"])
        start = f"images/{key}+step+{record['step']}+"
        if any(file.path.startswith(start) for file in self.client.list_artifacts(run, "images")):
            return
        name = f"timestamp+{record['time']}+{uuid.uuid5(uuid.NAMESPACE_URL, f'{run}/{start}')}"
        data = base64.b64decode(record["png"])
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((256, 256))
            small = io.BytesIO()
            image.save(small, format="WEBP")
        # the full picture last: it is what the look above finds
        self._artifact(run, f"{start}{name}+compressed.webp", small.getvalue())
        self._artifact(run, f"{start}{name}.png", data)
        self.client.set_tag(run, "mlflow.loggedImages", True)

    def _write_artifact(self, record: Record, writer: str) -> None:
        path = Path(record["path"])
        if path.exists():  # it may be gone by the time that a spool is flushed
            self._artifact(self._run(record), record["name"], path.read_bytes())

    def _write_model(self, record: Record, writer: str) -> None:
        """A registered version for each snapshot digest; the newest has the alias `candidate`."""
        run, registry = self._run(record), Registry(self.uri, client=self.client)
        self._artifact(run, "snapshot/manifest.json", json.dumps(record["manifest"], indent=1).encode())
        version = registry.register(record["name"], url=record["url"], manifest=record["manifest"], run=run)
        registry.point(version, CANDIDATE)

    def _artifact(self, run: str, path: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            file.write_bytes(data)
            parent = str(Path(path).parent)
            self.client.log_artifact(run, str(file), None if parent == "." else parent)

    def _open(self, record: Record, *, name: str, writer: str, parent: str | None) -> str:
        """The record's run, made if it is not there yet, running and in the hands of `writer`."""
        found = self._find(record["id"])
        if found is None:
            tags = {ID: record["id"], WRITER: writer, "mlflow.source.name": "latentmill"}
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
            found = self.client.create_run(self.experiment, record["time"], tags, name).info.run_id
        else:
            self.client.set_tag(found, WRITER, writer)
            self.client.update_run(found, "RUNNING")
        self._runs[record["id"]] = found
        return found

    def _run(self, record: Record) -> str:
        """The run of a record whose run is open: made again if someone deleted it meanwhile."""
        identity = record["id"]
        if identity not in self._runs:
            found = self._find(identity)
            if found is None:
                tags = {ID: identity}
                found = self.client.create_run(
                    self.experiment, record.get("time"), tags, identity
                ).info.run_id
            self._runs[identity] = found
        return self._runs[identity]

    def _find(self, identity: str) -> str | None:
        found = self._search(f"tags.`{ID}` = '{identity}'")
        return found[0].info.run_id if found else None

    def _search(self, query: str) -> list[Any]:
        return list(self.client.search_runs([self.experiment], query, order_by=["attributes.start_time ASC"]))

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            return self.client.create_experiment(name, artifacts)
        except MlflowException as error:  # another flusher was first
            found = self.client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return found.experiment_id


def _key(name: str) -> str:
    """A name of the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
