"""`submit` and `jobs`: what a cluster is given, what it is refused, and that again is resume."""

from __future__ import annotations

import json
import re
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.jobs import CONFIG
from cluster.session import PACKAGES, packages
from pipelines.__main__ import main
from pipelines.commands.jobs import stages
from pipelines.submission import check_installed
from tests.cluster.job_server import FakeCluster, serving

RECIPE = """
name: tiny
stages:
  images: {stage: ingest, source: {kind: folder, path: photos}, size: 16}
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A cluster of one node that is not this machine, and a recipe beside a folder of images."""
    import os

    for name in list(os.environ):
        if name.startswith(("RAY_ADDRESS", "RAY_AUTH", "AWS_", "MLFLOW_TRACKING", "LATENTMILL_")):
            monkeypatch.delenv(name)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    # The project itself is 30 MB, and sent as any package is.
    sent = [tmp_path / "packages" / name for name in PACKAGES]
    for folder in sent:
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    assert [folder.name for folder in packages()] == list(PACKAGES)
    monkeypatch.setattr("pipelines.submission.packages", lambda: tuple(sent))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    with serving(FakeCluster(nodes=["203.0.113.1"])) as fake:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", fake.url)
        yield fake


@pytest.fixture
def two(cluster: FakeCluster) -> FakeCluster:
    cluster.nodes = ["203.0.113.1", "203.0.113.2"]
    return cluster


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> types.SimpleNamespace:
    code = main([*arguments])
    out, err = capsys.readouterr()
    return types.SimpleNamespace(code=code, out=out, err=err)


def test_a_recipe_becomes_a_job_that_names_nothing_of_this_machine(
    two: FakeCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-a-secret")
    monkeypatch.setenv("LATENTMILL_TOKEN", "canary-of-a-token")
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3:9000")
    asked = [
        "submit",
        "quickstart",
        "--store",
        "s3://bucket/store",
        "--until",
        "images",
        "--images.size",
        "32",
    ]
    told = said(capsys, *asked)
    assert told.code == 0
    (name,) = two.jobs
    assert re.fullmatch(r"latentmill-quickstart-[0-9a-f]{8}", name)
    job = two.jobs[name]
    command = "python -m pipelines run quickstart.yaml --store s3://bucket/store --until images"
    assert job["entrypoint"] == command
    assert job["runtime_env"]["env_vars"].items() >= {
        ("MLFLOW_TRACKING_URI", "http://mlflow:5000"),
        ("AWS_ENDPOINT_URL", "http://s3:9000"),
    }
    assert len(job["runtime_env"]["py_modules"]) == 3
    assert job["metadata"]["recipe"] == "quickstart"
    assert job["metadata"]["report"] == "s3://bucket/store/runs/quickstart/report.html"
    everything = json.dumps(job) + told.out + told.err
    assert "canary" not in everything
    assert str(tmp_path) not in json.dumps(job)
    assert "AWS_SECRET_ACCESS_KEY stay" in told.out
    assert f"/#/jobs/{name}" in told.out


def test_the_recipe_that_is_sent_is_resolved_and_readable_anywhere(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    import io
    import zipfile

    from pipelines import config

    said(capsys, "submit", "quickstart", "--store", "/shared/store", "--shared-store", "--images.size", "32")
    sent = {}
    for data in cluster.packages.values():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sent |= {n: archive.read(n) for n in archive.namelist() if n.endswith("quickstart.yaml")}
    text = sent["quickstart.yaml"].decode()
    assert str(Path(config.__file__).parent) not in text
    recipe = config.parse(text, name="quickstart", folder=Path("/nowhere"))
    assert recipe.stages["images"].size == 32
    assert recipe.text == text


def test_again_follows_what_runs_and_resumes_what_has_ended(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
):
    asked = ["submit", "quickstart", "--store", "/shared/store", "--shared-store"]
    said(capsys, *asked)
    (name,) = cluster.jobs
    cluster.jobs[name]["status"] = "RUNNING"
    assert "(running already: nothing new is submitted)" in said(capsys, *asked).out
    assert list(cluster.jobs) == [name]
    cluster.end(name, "FAILED")
    said(capsys, *asked)
    cluster.end(f"{name}-2", "SUCCEEDED")
    said(capsys, *asked)
    assert list(cluster.jobs) == [name, f"{name}-2", f"{name}-3"]
    said(capsys, "submit", "quickstart", "--store", "/shared/other", "--shared-store")
    said(capsys, *asked, "--model.images-seen", "50000")
    assert len({n.removesuffix("-2").removesuffix("-3") for n in cluster.jobs}) == 3


def test_stores_that_nodes_do_not_share_are_refused(two: FakeCluster, capsys: pytest.CaptureFixture[str]):
    told = said(capsys, "submit", "quickstart", "--store", "/somewhere/store")
    assert told.code == 2
    assert told.err.count("\n") == 1
    assert "2 nodes and the store /somewhere/store is a folder" in told.err
    assert "--shared-store" in told.err
    assert "Where do results go?" in said(capsys, "submit", "quickstart").err
    told = said(capsys, "submit", "quickstart", "--store", "s3://bucket/store")
    assert "cannot hold MLflow's database" in told.err
    assert two.jobs == {}


def test_paths_that_nodes_do_not_see_are_refused_or_uploaded(
    two: FakeCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    asked = ["submit", "tiny.yaml", "--store", str(tmp_path / "store"), "--shared-store"]
    told = said(capsys, *asked)
    assert told.code == 2
    assert told.err == (
        f"latentmill: images.source.path: {tmp_path / 'photos'} is on this machine: --upload copies it into "
        f"the store, --shared {tmp_path / 'photos'} says that every node has it.\n"
    )
    told = said(capsys, *asked, "--upload")
    assert (told.code, "images.source.path -> " in told.out) == (0, True)
    assert "there already" in said(capsys, *asked, "--upload").out
    (copy,) = (tmp_path / "store" / "uploads").glob("*/photos.zip")
    assert copy.stat().st_size > 0
    assert said(capsys, *asked, "--shared", str(tmp_path)).code == 0
    assert len(two.jobs) == 2


def test_a_cluster_on_this_machine_sees_its_files(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]):
    cluster.nodes = ["127.0.0.1"]
    assert said(capsys, "submit", "tiny.yaml", "--store", "store").code == 0


def test_a_password_in_a_url_goes_nowhere(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary@mlflow:5000")
    told = said(capsys, "submit", "quickstart", "--store", "s3://bucket/store")
    assert (told.code, cluster.jobs) == (2, {})
    assert "MLFLOW_TRACKING_URI holds a password" in told.err
    assert "canary" not in told.out + told.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////here/mlflow.db")
    assert "is of this machine" in said(capsys, "submit", "quickstart", "--store", "s3://bucket/store").err


def test_nothing_is_submitted_to_other_versions_or_for_an_unknown_stage(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
):
    asked = ["submit", "quickstart", "--store", "/shared/store", "--shared-store"]
    assert "there is no stage 'image'; did you mean" in said(capsys, *asked, "--until", "image").err
    cluster.ray = "2.41.0"
    told = said(capsys, *asked)
    assert (told.code, cluster.jobs) == (2, {})
    assert "runs Ray 2.41.0" in told.err


def test_following_shows_the_log_and_ends_as_the_job_does(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
):
    asked = ["submit", "quickstart", "--store", "/shared/store", "--shared-store", "--follow"]

    def fails() -> None:
        while not cluster.jobs:
            pass
        (name,) = cluster.jobs
        cluster.jobs[name] |= {"logs": "images: starts\n", "message": "exit code 1\nmore"}
        cluster.end(name, "FAILED")

    threading.Thread(target=fails).start()
    told = said(capsys, *asked)
    assert told.code == 1
    assert told.out.endswith("images: starts\n")
    assert re.search(r"latentmill-quickstart-\w+ failed: exit code 1\n", told.err)


def test_jobs_are_listed_looked_at_and_stopped(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]):
    assert "No recipe was submitted" in said(capsys, "jobs").out
    log = "images: starts\nimages: 5 of 5 samples, done in 2 s\nmodel: starts\nmodel: 5 of 9 images\n"
    cluster.add("latentmill-tiny-1a", "SUCCEEDED", recipe="tiny", store="s3://b/store")
    cluster.add("latentmill-tiny-2b", logs=log, recipe="tiny", store="s3://b/store", report="s3://b/r.html")
    cluster.add("somebody-else")
    header, first, second = said(capsys, "jobs").out.splitlines()
    assert header.split() == ["job", "recipe", "status", "submitted", "took", "store"]
    assert re.match(r"latentmill-tiny-1a +tiny +succeeded +\S+ \S+ +1 min 15 s +s3://b/store", first)
    assert " running " in second
    listed = json.loads(said(capsys, "jobs", "--json").out)
    assert [job["status"] for job in listed] == ["succeeded", "running"]
    one = said(capsys, "jobs", "latentmill-tiny-2b").out
    assert "done       images\n" in one
    assert "running    model\n" in one
    assert "report     s3://b/r.html" in one
    assert said(capsys, "jobs", "latentmill-tiny-2b", "--logs").out == log
    assert "is told to stop" in said(capsys, "jobs", "latentmill-tiny-2b", "--stop").out
    assert "had stopped before" in said(capsys, "jobs", "latentmill-tiny-2b", "--stop").out
    assert "of which job?" in said(capsys, "jobs", "--stop").err
    assert "give one of them" in said(capsys, "jobs", "x", "--stop", "--logs").err


def test_stages_are_read_from_a_log():
    log = "Ray  http://head:8265\na: starts\nb: starts\na: failed: no room\nb: 3 of 3, done in 1 s\nc: odd"
    assert stages(log) == {"done": ["b"], "running": [], "failed": ["a"]}


def test_a_job_without_code_checks_what_is_installed():
    from cluster.jobs import CurrentJob
    from pipelines.runner.record import versions

    own = versions()["latentmill"]
    check_installed(CurrentJob(id="a", metadata={"installed": "yes", "version": own}))
    check_installed(CurrentJob(id="a", metadata={"installed": "no", "version": "0.0.1"}))
    with pytest.raises(ValueError, match=f"latentmill {own} is installed here, and 0.0.1 has submitted"):
        check_installed(CurrentJob(id="a", metadata={"installed": "yes", "version": "0.0.1"}))


def test_the_record_names_the_job_and_its_page(monkeypatch: pytest.MonkeyPatch):
    from pipelines.tracking import job_tags

    monkeypatch.delenv(CONFIG, raising=False)
    assert job_tags() == {}
    metadata = {
        "job_submission_id": "latentmill-tiny-1a-2",
        "dashboard": "http://head:8265",
        "store": "s3://b/s",
    }
    monkeypatch.setenv(CONFIG, json.dumps({"metadata": metadata}))
    tags = job_tags()
    assert tags["latentmill.job"] == "latentmill-tiny-1a-2"
    assert tags["latentmill.dashboard"] == "http://head:8265/#/jobs/latentmill-tiny-1a-2"
    assert tags["latentmill.dashboard"] in tags["mlflow.note.content"]
