"""A cluster's head dies while a training runs: all ends soon, whole and with a word, and goes on elsewhere.

The head was started by the run, or joined; and a machine with the head and the driver goes as a power cut
takes it, while workers go on elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cluster.gang import run_alone
from cluster.head import RAY_WAITS
from cluster.storage import Storage
from pipelines.training import checkpoints
from tests.cluster import gangs
from tests.cluster_suite.place import begun, placed
from tests.cluster_suite.test_losses import QUICK, Machines, await_steps, drive, steps_of

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(1500)]
BATCH = 8
RECIPE = """
name: little
stages:
  images: {stage: ingest, source: {kind: folder, path: emoji}, size: 16, samples_per_shard: 8,
    split: {validation: 0.2}, resources: {cpus: 1}}
  vae: {stage: train_autoencoder, images: images, images_seen: 4000000, batch: 8, checkpoint_every: 160,
    autoencoder: {kind: kl, channels: 16, multipliers: [1], latent_channels: 2},
    optimization: {warmup: 8, cooldown: 16}, resources: {cpus: 1, workers: 2}}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with placed(RECIPE, every=40) as folder:
        yield folder


def events(place: Path) -> list[dict[str, Any]]:
    file = place / "store" / "runs" / "little" / "events.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def seen(place: Path) -> int:
    """Images that the training has told of."""
    told = [e for e in events(place) if e["kind"] == "progress" and e["stage"] == "vae"]
    return max((event["done"] for event in told), default=0)


def await_training(place: Path, run: subprocess.Popen[str]) -> None:
    """Until it has written checkpoints, and taken steps since."""
    end = time.monotonic() + 600
    while seen(place) < 400:
        assert run.poll() is None, run.communicate()[0][-3000:]
        assert time.monotonic() < end
        time.sleep(0.2)


def kill(node: Any) -> None:
    """All of a machine, as a power cut does."""
    node.kill_all_processes(check_alive=False, allow_graceful=False)


def control_store(processes: list[psutil.Process]) -> psutil.Process:
    (found,) = [process for process in processes if process.name() == "gcs_server"]
    return found


def check_whole(place: Path) -> int:
    """Nothing in the store is half of anything; images seen of the newest checkpoint."""
    (folder,) = [path for path in (place / "store" / "checkpoints").iterdir() if path.is_dir()]
    storage = Storage.at(folder)
    marks = sorted(path.stem for path in folder.glob("*.json"))
    found = checkpoints.newest(storage, lambda mark: True)
    assert found is not None
    assert marks[-1].startswith(f"{found.mark.images_seen:012d}"), "the newest one is damaged"
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in found.tensors.values())
    names = [path.name for path in (place / "store").rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".tmp", ".new", ".part"))]
    return found.mark.images_seen


def ends_and_goes_on(place: Path, run: subprocess.Popen[str], head: str) -> None:
    told, killed = time.monotonic(), seen(place)
    said, _ = run.communicate(timeout=300)
    print(f"\nfrom the head's death to the run's end: {time.monotonic() - told:.1f} s")
    assert run.returncode == 75, said[-3000:]
    last = [line for line in said.splitlines() if line.strip()][-1]
    assert re.fullmatch(
        rf"latentmill: the head of the Ray cluster, {head}, answers no more: stopped; "
        r"`latentmill run recipe\.yaml` goes on from here\.",
        last,
    )
    assert "Traceback" not in said
    assert "Failed to connect to GCS" not in said
    safe = check_whole(place)
    # A checkpoint of its own, and not the last regular one before the death.
    assert safe >= killed
    assert safe >= seen(place)
    assert events(place)[-1]["kind"] in ("run_end", "stage_end")

    words = ("--vae.images-seen", str(safe + 20 * BATCH), "--vae.resources.workers", "1")
    again = begun(place, *words, "--executor", "inline")
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said[-3000:]
    assert f"Continues from {safe:,} images." in said


def test_a_head_of_its_own(place: Path) -> None:
    run = begun(place)
    await_training(place, run)
    control_store(psutil.Process(run.pid).children(recursive=True)).kill()
    ends_and_goes_on(place, run, "which was started here")


@contextlib.contextmanager
def head(place: Path) -> Iterator[tuple[str, psutil.Process]]:
    """One that stays when its control store is gone, as its machine's other processes do for a minute."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={**options, "temp_dir": str(place / "r")})
        mine = psutil.Process().children(recursive=True)
        try:
            yield str(cluster.address), control_store(mine)
        finally:
            kill(cluster.head_node)


def test_a_head_that_was_joined(place: Path) -> None:
    with head(place) as (address, store):
        run = begun(place, RAY_ADDRESS=address)
        await_training(place, run)
        store.kill()
        ends_and_goes_on(place, run, f"at {re.escape(address)}")


def test_a_machine_with_the_head_and_the_driver(tmp_path: Path) -> None:
    """Workers elsewhere write no more once they know; one without a cluster goes on in the same order."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
    ):
        for name, value in {**QUICK, RAY_WAITS: "40"}.items():
            patch.setenv(name, value)
        machines = Machines(folder)
        nodes = list(machines.nodes)
        try:
            driver = drive(tmp_path, 100_000, str(machines.cluster.address))
            await_steps(tmp_path, 10, driver)
            pids = [int(file.read_text().split()[0]) for file in tmp_path.glob("attempt-000-*")]
            driver.kill()
            kill(machines.cluster.head_node)
            driver.wait()
            since = time.monotonic()
            while any(psutil.pid_exists(pid) for pid in pids):
                assert time.monotonic() - since < 180, "workers of a cluster without a head are still there"
                time.sleep(0.2)
            print(f"\nthe workers ended {time.monotonic() - since:.1f} s after their head")
        finally:
            for node in nodes:
                kill(node)
        done = len(steps_of(tmp_path))
        time.sleep(2)
        assert len(steps_of(tmp_path)) == done
    config = {"folder": str(tmp_path), "steps": done + 10, "pause": 0.0}
    assert run_alone(gangs.count, config, threads=1, on_event=lambda event: None)["steps"] == done + 10
    gangs.check(tmp_path, done + 10)
