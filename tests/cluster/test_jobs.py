"""Jobs over HTTP, against a server that speaks as Ray's does."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.jobs import CONFIG, JobServer, Node, current
from tests.cluster.job_server import FakeCluster, serving


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    settings = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    for name in (*settings, "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with serving(FakeCluster()) as fake:
        yield fake


def submit(server: JobServer, name: str, folder: Path) -> bool:
    (folder / "package").mkdir(exist_ok=True)
    (folder / "package" / "__init__.py").write_text("WORD = 'here'\n")
    return server.submit(
        name,
        command="python -m package",
        files={"recipe.yaml": b"name: tiny\n"},
        packages=(folder / "package",),
        environment={"LATENTMILL_X": "1"},
        metadata={"recipe": "tiny"},
    )


def test_a_job_takes_its_files_and_packages_along_and_its_name_holds_once(
    cluster: FakeCluster, tmp_path: Path
):
    server = JobServer(cluster.url)
    assert submit(server, "tiny-1a", tmp_path)
    assert not submit(server, "tiny-1a", tmp_path)
    sent = cluster.jobs["tiny-1a"]["runtime_env"]
    assert sent["env_vars"]["LATENTMILL_X"] == "1"
    names = set()
    for data in cluster.packages.values():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names |= {name for name in archive.namelist() if not name.endswith("/")}
    assert names == {"recipe.yaml", "package/__init__.py"}
    assert str(tmp_path) not in json.dumps(cluster.jobs)
    job = server.job("tiny-1a")
    assert (job.status, job.over, job.metadata) == ("pending", False, {"recipe": "tiny"})


def test_attempts_are_told_from_other_jobs_and_stand_in_order(cluster: FakeCluster):
    for name in ("tiny-1a-10", "tiny-1a", "other", "tiny-1a-2", "tiny-1abc", "tiny-1a-x"):
        cluster.add(name, "FAILED")
    server = JobServer(cluster.url)
    assert [job.id for job in server.attempts("tiny-1a")] == ["tiny-1a", "tiny-1a-2", "tiny-1a-10"]
    assert len(server.jobs()) == 6


def test_stopping_and_logs(cluster: FakeCluster):
    cluster.add("tiny", logs="images: starts\n")
    server = JobServer(cluster.url)
    assert server.logs("tiny") == "images: starts\n"
    assert server.stop("tiny")
    assert not server.stop("tiny")
    assert server.job("tiny").status == "stopped"
    with pytest.raises(ValueError, match="knows no job none; `latentmill jobs` lists them"):
        server.job("none")


def test_following_a_job_that_pends_tells_all_of_its_log_once(cluster: FakeCluster):
    cluster.add("tiny", "PENDING", logs="first\nlast")
    threading.Timer(0.7, cluster.end, ("tiny", "SUCCEEDED")).start()
    told: list[str] = []
    assert JobServer(cluster.url).follow("tiny", told.append).status == "succeeded"
    assert "".join(told) == "first\nlast\n"


@pytest.mark.parametrize(
    ("versions", "line"),
    [
        ({"ray": "2.59.1"}, "runs Ray 2.59.1, and this is Ray 2"),
        ({"python": "3.9.4"}, "runs Python 3.9, and"),
    ],
)
def test_other_versions_are_refused(cluster: FakeCluster, versions: dict[str, str], line: str):
    JobServer(cluster.url).check_versions()
    for name, version in versions.items():
        setattr(cluster, name, version)
    with pytest.raises(ValueError, match=line):
        JobServer(cluster.url).check_versions()


def test_a_python_of_another_patch_is_welcome(cluster: FakeCluster):
    cluster.python = cluster.python.rpartition(".")[0] + ".99"
    JobServer(cluster.url).check_versions()


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN."),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 16}, "refuses this token: RAY_AUTH_TOKEN, the"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef"}, "No recipe was submitted"),
    ],
    ids=["missing", "wrong", "right"],
)
def test_a_missing_token_and_a_wrong_one_are_one_line(
    cluster: FakeCluster, tmp_path: Path, environment: dict[str, str], line: str
):
    cluster.token = "0123456789abcdef"
    # Ray reads mode and token once in a process, which other tests have had before: one of its own.
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pipelines", "jobs", "--address", cluster.url]
    ended = subprocess.run(command, env=home | environment, capture_output=True, text=True, timeout=120)
    said = ended.stdout + ended.stderr
    assert line in said
    assert said.count("\n") == 1
    assert ended.returncode == (0 if line.startswith("No recipe") else 2)


def test_what_is_no_address_or_answers_not_is_told(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="Which cluster"):
        JobServer()
    with pytest.raises(ValueError, match="No job server answers at http://127.0.0.1:9"):
        JobServer("127.0.0.1:9")
    with pytest.raises(ValueError, match="must not hold a password"):
        JobServer("http://me:secret@head:8265")
    with pytest.raises(ValueError, match="no job server's address"):
        JobServer("ray://head:10001")
    # What the command says counts, whatever the environment does.
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert JobServer(cluster.url).jobs() == []
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.url)
    assert JobServer().url == cluster.url


def test_nodes_that_live_and_where(cluster: FakeCluster):
    cluster.nodes = ["127.0.0.1", "203.0.113.9"]
    assert [(node.head, node.here) for node in JobServer(cluster.url).nodes()] == [
        (True, True),
        (False, False),
    ]
    assert not Node(address="2001:db8::1", head=False).here


def test_a_driver_knows_its_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(CONFIG, raising=False)
    assert current() is None
    told = {"runtime_env": {}, "metadata": {"job_submission_id": "tiny-2", "recipe": "tiny"}}
    monkeypatch.setenv(CONFIG, json.dumps(told))
    job = current()
    assert job is not None
    assert (job.id, job.metadata["recipe"]) == ("tiny-2", "tiny")
