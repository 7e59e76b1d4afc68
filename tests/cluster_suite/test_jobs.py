"""`submit` and `jobs` on a real head that asks for a token: one node, nothing but Ray."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import ray_head
from tests.cluster.ray_head import ROOT, TOKEN, Head, until
from tests.test_end_to_end import emoji

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1200)]
RECIPE = """
name: little
stages:
  images: {stage: ingest, source: {kind: folder, path: emoji}, size: 16, samples_per_shard: 8,
    split: {validation: 0.2}}
  vae: {stage: train_autoencoder, images: images, images_seen: 160, batch: 8,
    autoencoder: {kind: kl, channels: 16, multipliers: [1], latent_channels: 2},
    optimization: {warmup: 8, cooldown: 16}, resources: {cpus: 1}}
"""
LONG = ("--vae.images-seen", "4000000")
TWO = ("--vae.batch", "4", "--vae.resources.workers", "2", "--vae.checkpoint-every", "1000000")
"""A training of its own on two workers, whose only checkpoint is that of its end."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    place = tmp_path_factory.mktemp("jobs")
    emoji(place / "emoji", slice(0, 1600, 40))
    (place / "little.yaml").write_text(RECIPE)
    with ray_head.head(place) as started:
        yield started


def test_who_has_no_token_or_another_version_is_refused_in_a_line(head: Head, monkeypatch: Any):
    asked = ("submit", "little.yaml")
    wrong = head.run(*asked, code=2, RAY_AUTH_TOKEN="f" * 32)
    assert re.fullmatch(r"latentmill: http://\S+ refuses this token: .*\n", wrong)
    without = head.run(*asked, code=2, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
    assert re.fullmatch(r"latentmill: http://\S+ asks for a token: .*\n", without)
    site = head.place / "other"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import platform\nplatform.python_version = lambda: '3.99.1'\n")
    other = head.run(*asked, code=2, PYTHONPATH=f"{site}{os.pathsep}{ROOT}")
    assert re.fullmatch(r"latentmill: http://\S+ runs Python 3\.\d+, and this is Python 3\.99: .*\n", other)
    assert "No recipe was submitted" in head.run("jobs")


def test_a_job_runs_is_watched_and_again_finds_all_done(head: Head):
    first = head.run("submit", "little.yaml", "--follow")
    name = re.findall(r"^job +(\S+)$", first, re.M)[0]
    assert re.fullmatch(r"latentmill-little-[0-9a-f]{8}", name)
    assert re.search(r"^images: \d+ of \d+ samples, done in ", first, re.M)
    assert re.search(r"^vae: .*done in ", first, re.M)
    made = sorted(str(path) for path in (head.place / "store").glob("*/*/manifest.json"))
    assert len(made) == 2
    again = head.run("submit", "little.yaml", "--follow")
    assert f"{name}-2" in again
    assert "starts" not in again
    assert sorted(str(path) for path in (head.place / "store").glob("*/*/manifest.json")) == made
    listed = json.loads(head.run("jobs", "--json"))
    assert [(job["id"], job["status"]) for job in listed] == [
        (name, "succeeded"),
        (f"{name}-2", "succeeded"),
    ]
    assert "done       images, vae" in head.run("jobs", name)
    sent = json.dumps(head.get("/api/jobs/"))
    assert TOKEN not in sent


def test_a_running_job_is_seen_in_dashboard_and_metrics_and_stops_when_told(head: Head):
    told = head.run("submit", "little.yaml", *LONG)
    name = re.findall(r"^job +(\S+)$", told, re.M)[0]
    assert "nothing new is submitted" in head.run("submit", "little.yaml", *LONG)

    shown = until(lambda: ("loss", "vae") in (now := head.gauges()) and now)
    assert shown["images_planned", "vae"] == 4_000_000
    assert 0 < shown["images", "vae"] < 4_000_000
    assert shown["running", "vae"] == 1
    runs = head.get("/api/train/v2/runs/v1")["train_runs"]
    assert any(run["name"].startswith("vae-") for run in runs)
    actors = head.get("/api/v0/actors")["data"]["result"]["result"]
    assert any(actor["name"].startswith("events of vae-") for actor in actors)

    watcher = subprocess.Popen(
        head.command("jobs", name, "--follow"), cwd=head.place, env=head.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert watcher.stdout is not None
    until(lambda: "vae: starts" in watcher.stdout.readline())  # pyright: ignore[reportOptionalMemberAccess]
    watcher.send_signal(signal.SIGINT)
    assert f"{name} goes on" in watcher.communicate(timeout=60)[0]
    assert watcher.returncode == 130
    assert json.loads(head.run("jobs", name, "--json"))["status"] == "running"

    assert "is told to stop" in head.run("jobs", name, "--stop")
    until(lambda: json.loads(head.run("jobs", name, "--json"))["status"] == "stopped")
    log = head.run("jobs", name, "--logs")
    assert "submitted again, it goes on from here" in log
    assert "Traceback" not in log


def test_a_training_that_is_stopped_loses_no_step(head: Head):
    """Its only checkpoint is the one that it writes when it is told; the next submission goes on there."""
    name = re.findall(r"^job +(\S+)$", head.run("submit", "little.yaml", *LONG, *TWO), re.M)[0]

    def seen() -> int:
        """Images that this job has told of."""
        told = re.findall(r"^vae: ([\d,]+) of 4,000,000 images", head.run("jobs", name, "--logs"), re.M)
        return int(told[-1].replace(",", "")) if told else 0

    until(lambda: seen() >= 40)
    assert "is told to stop" in head.run("jobs", name, "--stop")
    until(lambda: json.loads(head.run("jobs", name, "--json"))["status"] == "stopped")
    log = head.run("jobs", name, "--logs")
    (at,) = re.findall(r"Stopped at ([\d,]+) images, which are safe", log)
    stopped = int(at.replace(",", ""))
    assert stopped >= seen()
    again = head.run("submit", "little.yaml", "--vae.images-seen", str(stopped + 40), *TWO, "--follow")
    assert f"Continues from {at} images." in again
    assert re.search(r"^vae: .*done in ", again, re.M)
