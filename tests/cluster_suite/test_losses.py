"""Gangs that lose machines, workers and drivers, on clusters of several raylets; the order stays exact.

On a machine that has nothing else to do ten minutes; Ray's processes spend theirs on importing torch.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.mapping import RayExecutor
from cluster.resources import Resources
from cluster.session import SETTINGS, RaySession
from tests.cluster import gangs

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(3600)]
LOSSES = int(os.environ.get("LATENTMILL_TEST_LOSSES", "10"))
QUICK = {
    **SETTINGS,
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "LATENTMILL_GROW_SECONDS": "3",
    "LATENTMILL_HANG_SILENT": "8",
}
SLOT: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class Machines:
    """A head that only drives, and raylets with room for one worker each."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": folder})
        self.nodes = [self.cluster.add_node(**SLOT) for _ in range(2)]

    def lose(self, place: int) -> None:
        """As a power cut takes one."""
        self.cluster.remove_node(self.nodes.pop(place), allow_graceful=False)

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(**SLOT))


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    import ray

    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
    ):
        for name, value in QUICK.items():
            patch.setenv(name, value)
        machines = Machines(folder)
        ray.init(address=machines.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield machines
        finally:
            ray.shutdown()
            machines.cluster.shutdown()


class Training:
    """A gang in a thread."""

    def __init__(self, folder: Path, *, resources: Resources, **config: Any) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.told: list[Any] = []
        self.executor = RayExecutor(RaySession(dashboard=False))
        self.thread = threading.Thread(
            target=self._run, args=(resources, {"folder": str(folder), **config}), daemon=True
        )
        self.thread.start()

    def _run(self, resources: Resources, config: dict[str, Any]) -> None:
        try:
            self.told.append(
                self.executor.gang(
                    gangs.count, config, resources=resources, name="count", on_event=self.events.append
                )
            )
        except BaseException as error:
            self.told.append(error)

    def steps(self, world: int | None = None) -> int:
        """Done, by so many workers."""
        log = self.folder / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        return sum(world is None or line["world"] == world for line in whole)

    def until(self, there: Callable[[], bool], what: str, *, seconds: float = 600.0) -> None:
        end = time.monotonic() + seconds
        while not there():
            assert not self.told, f"ended before {what}: {self.told}"
            assert time.monotonic() < end, f"{what} did not come; {self.events[-5:]}"
            time.sleep(0.1)

    def more(self, steps: int, world: int, what: str) -> None:
        begun = self.steps(world)
        self.until(lambda: self.steps(world) >= begun + steps, what)

    def end(self, seconds: float = 900.0) -> dict[str, Any]:
        self.thread.join(seconds)
        assert self.told, "it did not end"
        if isinstance(self.told[0], BaseException):
            raise self.told[0]
        return self.told[0]

    def notes(self) -> list[str]:
        return [event["text"] for event in self.events if event["kind"] == "note"]

    def restarts(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == "restart"]


def test_ten_machines_are_lost_and_come_back(machines: Machines, tmp_path: Path) -> None:
    """Two workers, then one, then two again, as often; now rank 0's machine goes, now the other."""
    elastic = Resources(cpus=1, workers=2, min_workers=1)
    training = Training(tmp_path, resources=elastic, steps=100_000, pause=0.1, every=5)
    training.more(10, 2, "the first steps of two")
    for loss in range(LOSSES):
        machines.lose(loss % 2)
        training.more(6, 1, f"steps of one worker after loss {loss + 1}")
        machines.add()
        training.more(6, 2, f"steps of two workers after loss {loss + 1}")
    done = max(json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines())
    training.executor.paused.set()
    training.thread.join(300)
    assert "are safe" in str(training.told[0])
    finished = Training(tmp_path, resources=elastic, steps=done + 20, pause=0.0, every=5)
    assert finished.end()["steps"] == done + 20
    worlds = gangs.check(tmp_path, done + 20)
    assert worlds.count(1) >= LOSSES
    lost = [event["seconds"] for event in training.restarts() if event["world"] == 1]
    grown = [event["seconds"] for event in training.restarts() if event["world"] == 2]
    for what, seconds in (("a loss", lost), ("growing", grown)):
        middle, most = statistics.median(seconds), max(seconds)
        print(f"\ninterruption by {what}: median {middle:.1f} s, most {most:.1f} s, {len(seconds)} times")
    assert len(lost) >= LOSSES


def test_stopped_processes_are_named_and_ended(machines: Machines, tmp_path: Path) -> None:
    stops = {7: 1, 14: 0, 21: 1}
    training = Training(
        tmp_path, resources=Resources(cpus=1, workers=2), steps=30, pause=0.1, every=3, stop=stops
    )
    assert training.end()["steps"] == 30
    named = [note for note in training.notes() if "does not answer" in note]
    pids = [(tmp_path / f"stop-{step}").read_text() for step in stops]
    assert [note.split(" on ")[0] for note in named] == [f"Worker {rank}" for rank in stops.values()]
    assert all(f"(process {pid})" in note for pid, note in zip(pids, named, strict=True))
    gangs.check(tmp_path, 30)
    seconds = [event["seconds"] for event in training.restarts()]
    print(f"\ninterruptions by a stopped process: {', '.join(f'{s:.1f}' for s in seconds)} s")


def test_a_machine_that_will_be_taken_away_is_left_with_a_checkpoint(
    machines: Machines, tmp_path: Path
) -> None:
    """Nothing is done twice: the checkpoint is of the last step before the machine is left."""
    elastic = Resources(cpus=1, workers=2, min_workers=1)
    training = Training(tmp_path, resources=elastic, steps=100_000, pause=0.1, every=1_000_000)
    training.more(10, 2, "the first steps of two")
    node = machines.nodes[1]
    drain = [
        *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
        *("--address", machines.cluster.address, "--node-id", node.node_id),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
        *("--deadline-remaining-seconds", "60"),
    ]
    subprocess.run(drain, check=True, capture_output=True, timeout=120)
    training.more(6, 1, "steps of one worker")
    machines.lose(1)
    machines.add()
    training.more(6, 2, "steps of two workers")
    training.executor.paused.set()
    training.thread.join(300)
    lines = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == list(range(len(lines)))
    gangs.check(tmp_path, len(lines))


def drive(folder: Path, steps: int, address: str) -> subprocess.Popen[str]:
    """A driver's process on that cluster."""
    command = [sys.executable, "-m", "tests.cluster.driver", str(folder), str(steps), "0.1"]
    env = {**os.environ, **QUICK, "PYTHONPATH": str(Path(__file__).parents[2]), "RAY_ADDRESS": address}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def steps_of(folder: Path) -> list[int]:
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def await_steps(folder: Path, steps: int, driver: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 600
    while len(steps_of(folder)) < steps:
        assert driver.poll() is None, driver.communicate()[1][-2000:]
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_killed_drivers_workers_write_no_more_and_the_next_one_goes_on(
    machines: Machines, tmp_path: Path
) -> None:
    address = str(machines.cluster.address)
    driver = drive(tmp_path, 100_000, address)
    await_steps(tmp_path, 10, driver)
    driver.kill()
    driver.wait()
    pids = [int(file.read_text().split()[0]) for file in tmp_path.glob("attempt-000-*")]
    end = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < end, "the dead driver's workers are still there"
        time.sleep(0.1)
    done = len(steps_of(tmp_path))
    assert drive(tmp_path, done + 10, address).wait(900) == 0
    gangs.check(tmp_path, done + 10)
