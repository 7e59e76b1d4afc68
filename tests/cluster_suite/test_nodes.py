"""A recipe on a real cluster whose nodes share nothing but the network, and which loses two of them.

A Ray head and two workers with token authentication, each with its own processes, /tmp and shared memory and
without this project's files; MLflow on PostgreSQL; S3. Nodes are taken away as a power cut takes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from infra.local import up
from tests.test_end_to_end import emoji

MISSING = up.missing(isolated=True)
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"needs: {'; '.join(MISSING)}"),
]
ROOT = Path(__file__).parents[2]
RECIPE = """
name: nodes
stages:
  images: {stage: ingest, source: {kind: folder, path: emoji}, size: 16, samples_per_shard: 4,
    split: {validation: 0.1, test: 0.1}, resources: {cpus: 1, workers: 2}}
  captions: {stage: caption, images: images, captioners: [{kind: template, text: "a 3D emoji of {text}"}],
    resources: {cpus: 1, workers: 2}}
  vae: {stage: train_autoencoder, images: images, images_seen: 64, batch: 8,
    autoencoder: {kind: kl, channels: 16, multipliers: [1, 2], latent_channels: 2},
    optimization: {warmup: 8, cooldown: 16}, checkpoint_every: 32, resources: {cpus: 1}}
  latents: {stage: encode, images: images, autoencoder: vae, micro_batch: 8, resources: {cpus: 1, workers: 2}}
  model: {stage: train, latents: latents, images: images, autoencoder: vae, images_seen: 4000, batch: 8,
    network: {kind: dit, width: 32, depth: 2, heads: 2, patch: 1}, optimization: {warmup: 8, cooldown: 400},
    checkpoint_every: 400, validate_every: 4000, samples_every: 4000, validation_samples: 8,
    sampler: {kind: euler, steps: 2}, resources: {cpus: 1, workers: 2}}
  drawn: {stage: generate, model: model, images: images, count: 8, samples_per_shard: 4,
    sampler: {kind: euler, steps: 2}, resources: {cpus: 1, workers: 2}}
"""
STAGES = ["images", "captions", "vae", "latents", "model", "drawn"]
UNTRAINED = ("ingest/", "caption/")
"""Outputs that no training has touched."""
SETTINGS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",
}
"""Ray Train learns of a lost node after attempts of this length; workers would be nicer than all else."""


def outputs(store: Storage) -> dict[str, str]:
    """sha256 of every shard, index and weight, by its place in the store."""
    return {
        name: hashlib.sha256(store.read(name)).hexdigest()
        for name in store.list()
        if name.endswith((".tar", ".parquet", ".safetensors"))
        and not name.startswith(("checkpoints/", "uploads/"))
    }


def latentmill(*arguments: str, environment: Mapping[str, str], cwd: Path) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "pipelines", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    env = {name: value for name, value in env.items() if value}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@dataclass
class Story:
    """What happened, for the tests to judge."""

    cluster: up.Cluster
    place: Path
    store: Storage
    job: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, int] = field(default_factory=dict)
    """How far the stage was when it lost a node."""
    seconds: dict[str, float] = field(default_factory=dict)


def until(
    there: Callable[[], bool],
    what: str,
    *,
    vain: Callable[[], bool] = lambda: False,
    seconds: float = 900.0,
    pause: float = 0.2,
) -> None:
    """Waits; `vain` is asked now and then, and says that it will never come."""
    end, looked = time.monotonic() + seconds, time.monotonic()
    while not there():
        assert time.monotonic() < end, f"{what} did not come in {seconds:g} s"
        if time.monotonic() - looked > 5:
            assert not vain(), f"{what} will not come: the job has ended"
            looked = time.monotonic()
        time.sleep(pause)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    place = tmp_path_factory.mktemp("cluster")
    emoji(place / "emoji", slice(0, 1600, 33))
    (place / "nodes.yaml").write_text(RECIPE)
    begun = time.monotonic()
    with pytest.MonkeyPatch.context() as patch, up.up(workers=2, isolated=True, settings=SETTINGS) as cluster:
        for name, value in {**cluster.environment, "LATENTMILL_CACHE": str(place / "cache")}.items():
            patch.setenv(name, value)
        story = Story(cluster, place, Storage.at(cluster.environment["LATENTMILL_STORE"]))
        story.seconds["cluster up"] = time.monotonic() - begun
        lose_two_nodes(story)
        yield story


@pytest.fixture(scope="module")
def local(story: Story) -> dict[str, str]:
    """Outputs of the same recipe on this machine, with as many workers and threads."""
    return run_here(story, "local")


@pytest.fixture(scope="module")
def single(story: Story) -> dict[str, str]:
    """The same with one worker a stage and no Ray."""
    one = [word for stage in STAGES for word in (f"--{stage}.resources.workers", "1")]
    return run_here(story, "single", "--executor", "inline", *one)


def run_here(story: Story, store: str, *flags: str) -> dict[str, str]:
    """Without the cluster, which idles meanwhile."""
    start, away = time.monotonic(), dict.fromkeys(story.cluster.environment, "")
    own = {**away, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    latentmill("run", "nodes.yaml", "--store", store, *flags, environment=own, cwd=story.place)
    story.seconds[f"{store} run"] = time.monotonic() - start
    return outputs(Storage.at(story.place / store))


def lose_two_nodes(story: Story) -> None:
    """Submits the recipe, takes a node away while it encodes and one while it trains, and awaits its end."""
    cluster, start = story.cluster, time.monotonic()
    submit = ["submit", "nodes.yaml", "--address", cluster.dashboard, "--upload", "--detach", "--json"]
    story.job = json.loads(latentmill(*submit, environment=cluster.environment, cwd=story.place))
    story.seconds["submit"] = time.monotonic() - start

    def done(suffix: str, folder: str) -> int:
        return sum(name.endswith(suffix) for name in story.store.list(folder))

    def ended() -> bool:
        return state(story) not in ("pending", "running")

    until(lambda: done(".parquet", "encode/") >= 2, "the first latents", vain=ended)
    cluster.kill_worker("worker1")
    story.progress["latents"] = done(".parquet", "encode/")
    story.seconds["first node lost"] = time.monotonic() - start
    cluster.add_worker(wait=False)
    until(lambda: marks(story)[-1:] > ["000000000800"], "a checkpoint of the model", vain=ended)
    cluster.kill_worker("worker2")
    story.progress["model"] = int(marks(story)[-1].partition("-")[0])
    story.seconds["second node lost"] = time.monotonic() - start
    cluster.add_worker(wait=False)
    until(ended, "the job's end", pause=1.0)
    story.seconds["job"] = time.monotonic() - start
    print({name: round(value, 1) for name, value in story.seconds.items()}, story.progress)


def state(story: Story) -> str:
    from cluster.jobs import JobServer

    return JobServer(story.cluster.dashboard).job(story.job["id"]).status


def marks(story: Story) -> list[str]:
    """Names of the denoiser's checkpoints, the furthest last; those of the autoencoder are at most at 64."""
    names = (name.rpartition("/")[2] for name in story.store.list("checkpoints/") if "/lease/" not in name)
    return sorted(name for name in names if name.endswith(".json") and name > "000000000100")


def test_it_ends_well_though_two_nodes_were_lost_while_they_worked(story: Story):
    from cluster.jobs import JobServer

    assert state(story) == "succeeded", JobServer(story.cluster.dashboard).logs(story.job["id"])[-5000:]
    shards = sum(name.startswith("encode/") and name.endswith(".tar") for name in outputs(story.store))
    assert 2 <= story.progress["latents"] < shards, "the first node was lost while shards were encoded"
    assert 800 <= story.progress["model"] < 4000, "the second one while the model was trained"


def test_its_bytes_are_those_of_a_run_on_one_machine(story: Story, local: dict[str, str]):
    """Of as many workers and threads: trained weights, and what is made with them, included."""
    assert outputs(story.store) == local
    kinds = {name.partition("/")[0] for name in local}
    assert kinds == {"ingest", "caption", "train_autoencoder", "encode", "train", "generate"}


def test_with_other_workers_all_is_equal_up_to_the_first_training(story: Story, single: dict[str, str]):
    untrained = {name: digest for name, digest in single.items() if name.startswith(UNTRAINED)}
    assert untrained
    assert untrained == {n: d for n, d in outputs(story.store).items() if n.startswith(UNTRAINED)}


def test_the_record_is_in_mlflow(story: Story):
    from mlflow import MlflowClient

    client = MlflowClient(story.cluster.tracking)
    experiment = client.get_experiment_by_name("latentmill")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (whole,) = [run for run in runs if run.data.tags.get("mlflow.parentRunId") is None]
    assert whole.info.status == "FINISHED"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == whole.info.run_id]
    assert sorted(str(run.info.run_name) for run in children) == sorted(STAGES)
    assert {run.info.status for run in children} == {"FINISHED"}
    (model,) = [run for run in children if run.info.run_name == "model"]
    history = client.get_metric_history(model.info.run_id, "loss")
    assert max(point.step for point in history) == 4000
    (version,) = client.search_model_versions("name='nodes-model'")
    assert version.run_id == model.info.run_id


def test_nobody_without_the_token_is_heard(story: Story):
    for path in ("api/jobs/", "nodes?view=summary", "api/version"):
        for header in ({}, {"Authorization": f"Bearer {'0' * 64}"}):
            asked = urllib.request.Request(f"{story.cluster.dashboard}/{path}", headers=header)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(asked, timeout=10)
            assert refused.value.code in (401, 403)


def test_no_secret_is_written_anywhere(story: Story):
    """Neither in any node's logs, nor in what Ray tells of the job, nor in the store."""
    names = ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY")
    secrets = [story.cluster.environment[name].encode() for name in names]
    files = [
        path for path in story.cluster.folder.rglob("*") if path.is_file() and path.stat().st_size < 2**26
    ]
    assert len([path for path in files if "session_" in str(path)]) > 20
    for path in files:
        if path.suffix not in (".so", ".pyc"):
            data = path.read_bytes()
            assert not [name for name, secret in zip(names, secrets, strict=True) if secret in data], path
    for name in story.store.list():
        assert not any(secret in story.store.read(name) for secret in secrets), name


def test_prometheus_has_what_ray_measures(story: Story):
    def asked(query: str) -> list[Any]:
        url = f"{story.cluster.prometheus}/api/v1/query?query={query}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    until(lambda: len(asked("ray_node_cpu_utilization")) >= 3, "measures of three nodes", seconds=60)
    stages = {result["metric"]["stage"] for result in asked("last_over_time(ray_latentmill_images[1h])")}
    assert set(STAGES) <= stages
