from __future__ import annotations

import base64
import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines import tracking
from pipelines.recording import flush as flusher
from pipelines.recording import spool
from pipelines.recording.spool import Spool
from pipelines.registry import Registry
from pipelines.tracking import Destination, Tracker, flatten

LIMIT = 150.0
"""Seconds: what takes three on an idle machine may take long on a busy one."""


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module", autouse=True)
def quiet():
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")


@pytest.fixture
def store(mlflow_store: Storage) -> Storage:
    return mlflow_store


def client(store: Storage):
    from mlflow import MlflowClient

    uri = f"sqlite:///{store.url}/mlflow.db"
    return MlflowClient(uri, uri)


def runs(store: Storage) -> dict[str, list]:
    """MLflow's runs by name."""
    c = client(store)
    experiment = c.get_experiment_by_name("latentmill")
    found: dict[str, list] = {}
    for run in c.search_runs([experiment.experiment_id]):
        found.setdefault(run.info.run_name, []).append(run)
    return found


MANIFEST = {
    "kind": "snapshot",
    "stage": "train",
    "version": 1,
    "fingerprint": "f" * 64,
    "meaning": {"batch": 32, "network": {"kind": "dit", "width": 64}},
    "inputs": {"latents": {"fingerprint": "a" * 64, "digest": "b" * 64}},
    "snapshot": {"task": "denoiser", "images_seen": 300, "files": {"denoiser.safetensors": "c" * 64}},
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Storage], None]:
    """Flushes in this process, when it is called, and in no other."""
    idle = [sys.executable, "-c", ""]
    monkeypatch.setattr(Destination, "flush", lambda self: subprocess.Popen(idle))

    def flush(store: Storage) -> None:
        to = Destination.of(store, "tiny")
        assert flusher.main([str(to.spool), "--uri", to.uri, "--artifacts", str(to.artifacts)]) == 0

    return flush


def train(tracker: Tracker, *, steps: range, end: bool = True) -> None:
    tracker({"kind": "stage_start", "stage": "base", "time": 1e9, "fingerprint": "f" * 64})
    for step in steps:
        tracker(
            {
                "kind": "metrics",
                "stage": "base",
                "time": 1e9 + step,
                "step": step,
                "values": {"loss": 1 / (1 + step)},
            }
        )
    tracker({"kind": "picture", "stage": "base", "time": 1e9, "name": "samples", "step": 7, "png": png()})
    if end:
        ended = {"kind": "stage_end", "stage": "base", "time": 2e9, "seconds": 3.0, "folder": "/s/x"}
        tracker({**ended, "state": "done", "error": None, "manifest": MANIFEST})
        tracker({"kind": "run_end", "stage": "", "time": 2e9, "state": "done"})


def assert_recorded_once(store: Storage, *, steps: range) -> None:
    c, found = client(store), runs(store)
    assert {name: len(of) for name, of in found.items()} == {"tiny": 1, "base": 1}
    parent, child = found["tiny"][0], found["base"][0]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    history = c.get_metric_history(child.info.run_id, "loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (s, 1 / (1 + s)) for s in steps
    ]
    assert child.data.params == {"batch": "32", "network.kind": "dit", "network.width": "64"}
    inputs = c.get_run(child.info.run_id).inputs.dataset_inputs
    assert [(i.dataset.name, i.dataset.digest) for i in inputs] == [("latents-" + "a" * 12, "b" * 36)]
    pictures = [a.path for a in c.list_artifacts(child.info.run_id, "images")]
    assert sorted(path.rpartition(".")[2] for path in pictures) == ["png", "webp"]
    version = c.get_model_version_by_alias("tiny-base", "candidate")
    assert (str(version.version), version.source, version.tags["latentmill.url"]) == ("1", "/s/x", "/s/x")
    assert len(c.search_model_versions("name='tiny-base'")) == 1
    # whoever registers the same snapshot finds that version: the gate need not wait for the flusher
    assert Registry.of(store).register("tiny-base", url="/s/x", manifest=MANIFEST).number == 1
    assert spool.files(Destination.of(store, "tiny").spool) == []


def test_a_run_and_its_stages_are_recorded(store: Storage, tmp_path: Path, here: Callable[[Storage], None]):
    report = tmp_path / "report.html"
    report.write_text("<p>done</p>")
    tracker = Tracker(store, "tiny", resolved="name: tiny\n")
    train(tracker, steps=range(20))
    tracker.close(seconds=LIMIT, report=report)
    here(store)
    assert_recorded_once(store, steps=range(20))
    c = client(store)
    parent = runs(store)["tiny"][0].info.run_id
    assert {a.path for a in c.list_artifacts(parent)} == {"recipe.yaml", "report.html"}
    assert (Path(store.url) / "mlartifacts").is_dir()
    assert not (Path(store.url) / "runs" / "tiny" / "spool" / "open.json").exists()


def test_nothing_executed_leaves_nothing_and_imports_nothing(store: Storage):
    code = (
        "import sys; from cluster.storage import Storage; from pipelines.tracking import Tracker;"
        f"t = Tracker(Storage.at({store.url!r}), 'tiny'); t({{'kind': 'plan', 'time': 1.0}});"
        "t({'kind': 'run_end', 'time': 2.0}); assert t.close();"
        "assert not {'mlflow', 'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=tracking.environment())
    assert not (Path(store.url) / "runs").exists()


def test_a_flusher_killed_after_every_write_records_each_thing_once(
    store: Storage, here: Callable[[Storage], None], monkeypatch: pytest.MonkeyPatch
):
    """The worst moment is after MLflow has a record and before the cursor says so; here it always comes."""
    tracker = Tracker(store, "tiny", resolved="name: tiny\n")
    train(tracker, steps=range(30))
    tracker.close()
    advance = spool.SpoolFile.advance
    done: set[int] = set()

    def killed(self: spool.SpoolFile, offset: int) -> None:
        if offset not in done:
            done.add(offset)
            raise KeyboardInterrupt  # as little can be caught here as of a kill
        advance(self, offset)

    monkeypatch.setattr(spool.SpoolFile, "advance", killed)
    for attempt in range(100):
        try:
            here(store)
            break
        except KeyboardInterrupt:
            assert attempt < 99
    assert len(done) >= 7
    assert_recorded_once(store, steps=range(30))


def test_kill_9_of_the_flusher_process(store: Storage, monkeypatch: pytest.MonkeyPatch):
    tracker = Tracker(store, "tiny")
    train(tracker, steps=range(300), end=False)
    process = tracker._process
    assert process is not None
    deadline = time.monotonic() + LIMIT
    cursor = tracker._spool.path.with_suffix(".cursor")  # pyright: ignore[reportOptionalMemberAccess]
    while not cursor.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    train(tracker, steps=range(300, 600))
    assert tracker.close(seconds=1) is False
    second = Destination.of(store, "tiny").flush()
    assert second.wait(LIMIT) == 0
    assert_recorded_once(store, steps=range(600))


def test_a_driver_that_was_killed_is_one_run_with_its_resumption(
    store: Storage, here: Callable[[Storage], None]
):
    """Steps after the last checkpoint are reported twice and recorded once."""
    first = Tracker(store, "tiny")
    train(first, steps=range(10), end=False)
    assert first._spool is not None
    first._spool.close()  # what the end of a process does to its lock
    here(store)
    assert {name: of[0].info.status for name, of in runs(store).items()} == {
        "tiny": "KILLED",
        "base": "KILLED",
    }
    second = Tracker(store, "tiny")
    train(second, steps=range(6, 15))
    second.close(seconds=LIMIT)
    here(store)
    assert_recorded_once(store, steps=range(15))


@pytest.mark.parametrize("fault", ["refusing", "silent"])
def test_an_mlflow_that_is_away_costs_a_stage_nothing(
    store: Storage, fault: str, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if fault == "silent":
            server.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = Tracker(store, "tiny")
        started = time.monotonic()
        train(tracker, steps=range(100))
        assert time.monotonic() - started < 2.0
        started = time.monotonic()
        assert tracker.close(seconds=1.5) is False
        assert time.monotonic() - started < 4.0
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    if fault == "refusing":
        (to,) = tracking.leftovers(store)
        assert flusher.main([str(to.spool), "--uri", to.uri, "--artifacts", str(to.artifacts)]) == 0
        assert_recorded_once(store, steps=range(100))


class Broken(http.server.BaseHTTPRequestHandler):
    """An MLflow whose database is gone."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_error(500)

    do_GET = do_POST = _answer

    def log_message(self, *arguments: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


@pytest.mark.parametrize("fault", ["refusing", "broken"])
def test_what_a_training_tells_while_mlflow_is_away_is_all_there_afterwards(
    store: Storage, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
):
    """Each figure of each report once, by name, step and value; and no end of a run waits for it."""
    from pipelines.training import loop
    from tests.pipelines import tiny

    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if fault == "refusing":
        server.shutdown()
        server.server_close()
    # The flusher's part is played by this process, when it is asked to.
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(Destination, "flush", lambda self: subprocess.Popen(sleeper))
    tracker = Tracker(store, "tiny")
    session = tiny.session(tmp_path, tiny.line(tmp_path / "line"))
    tell = session.events.append

    def event(said: dict[str, object]) -> None:
        tell(said)
        tracker({**said, "stage": "base", "time": 1e9 + len(session.events)})

    session.event = event  # pyright: ignore[reportAttributeAccessIssue]
    tracker({"kind": "stage_start", "stage": "base", "time": 1e9, "fingerprint": "f"})
    tiny.run(tiny.train(), session)
    to = tracker.destination
    away = to.spool / spool.AWAY
    away.touch()  # as a flusher does that gets no answer
    started = time.monotonic()
    assert tracker.close(seconds=60) is False
    assert time.monotonic() - started < 10
    away.unlink()
    assert flusher.main([str(to.spool), "--uri", to.uri]) == 3
    assert away.exists()
    if fault == "broken":
        server.shutdown()

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (to,) = tracking.leftovers(store)
    for _ in range(2):
        assert flusher.main([str(to.spool), "--uri", to.uri, "--artifacts", str(to.artifacts)]) == 0
    assert not (to.spool / spool.AWAY).exists()
    run = runs(store)["base"][0].info.run_id
    told = [
        (name, said["step"], value)
        for said in session.events
        if said["kind"] == "metrics"
        for name, value in said["values"].items()
    ]
    c = client(store)
    names = {name for name, _, _ in told}
    assert len(names) > 15
    kept = [(m.key, m.step, m.value) for name in names for m in c.get_metric_history(run, name)]
    assert sorted(kept) == sorted(told)
    pictures = [a.path for a in c.list_artifacts(run, "images") if a.path.endswith("png")]
    assert len(pictures) == sum(said["kind"] == "picture" for said in session.events) == 8


def test_a_torn_line_is_not_a_record(tmp_path: Path):
    writer = Spool(tmp_path)
    writer.append({"kind": "run", "text": "ü"})
    (file,) = spool.files(tmp_path)
    assert file.alive()
    with open(file.path, "ab") as raw:
        raw.write(b'{"kind":"met')
    ((offset, record),) = file.read()
    assert record == {"kind": "run", "text": "ü"}
    file.advance(offset)
    assert list(file.read()) == []
    writer.close()
    assert not file.alive()
    file.delete()
    assert list(tmp_path.iterdir()) == []


def test_pictures_and_rates_are_kept_small(store: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Destination, "flush", lambda self: subprocess.Popen([sys.executable, "-c", ""]))
    tracker = Tracker(store, "tiny")
    tracker({"kind": "stage_start", "stage": "latents", "time": 0.0, "fingerprint": "e"})
    for n in range(1, 1001):
        tracker(
            {
                "kind": "progress",
                "stage": "latents",
                "time": n * 0.02,
                "done": n,
                "total": 1000,
                "unit": "images",
            }
        )
    tracker({"kind": "picture", "stage": "latents", "time": 1.0, "name": "grid", "step": 0, "png": png()})
    (file,) = spool.files(tracker.destination.spool)
    records = [json.loads(line) for line in file.path.read_text().splitlines()]
    rates = [r["values"]["images_per_second"] for r in records if r["kind"] == "metrics"]
    assert len(rates) == 3
    assert rates == pytest.approx([50.0] * 3)
    assert base64.b64decode(records[-1]["png"]) == png()
    tracker.close()


def test_a_bucket_needs_a_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
        Destination.of(Storage.at("s3://bucket/store"), "tiny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    to = Destination.of(Storage.at("s3://bucket/store"), "tiny")
    assert (to.uri, to.artifacts) == ("http://mlflow:5000", None)


def test_flatten_keeps_lists_as_values():
    assert flatten({"a": {"b": [1, {"c": 2}], "d": {}}, "e": None}) == {
        "a.b": [1, {"c": 2}],
        "a.d": {},
        "e": None,
    }
