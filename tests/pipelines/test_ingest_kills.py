"""An ingest whose driver, workers and children are killed again and again: the same bytes, nothing twice."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from cluster.storage import Storage
from pipelines.dataset import Dataset
from pipelines.sources.listing import encode
from tests.pipelines.ingest_driver import Task
from tests.pipelines.toys import noted

ROOT = Path(__file__).resolve().parent.parent.parent


def pile(folder: Path, count: int, side: int = 60) -> None:
    """Pictures of three classes, some with a text; each 20th is a near copy of another, each 50th broken.

    `side`: of the smallest, px.
    """
    draw, small = np.random.default_rng(0), np.zeros((5, 5, 3), dtype=np.uint8)
    for n in range(count):
        path = folder / f"class {n % 3}" / f"{n:04d}.{'png' if n % 4 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if n % 20 != 7:
            small = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        size = (side + n % 50, side + 8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, compress_level=1)
        if n % 50 == 11:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
        if n % 5 == 0:
            path.with_suffix(".txt").write_text(f"picture number {n}")


@dataclasses.dataclass
class World:
    """A pile, a store, and drivers over them."""

    task: Task

    @property
    def store(self) -> Path:
        return Path(self.task.store)

    def start(self, **changes: Any) -> subprocess.Popen[bytes]:
        task = dataclasses.replace(self.task, **changes)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        # What the killed leave there goes with the test.
        environment["TMPDIR"] = task.ray or str(self.store.parent)
        command = [
            sys.executable,
            "-m",
            "tests.pipelines.ingest_driver",
            json.dumps(dataclasses.asdict(task)),
        ]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def run(self, **changes: Any) -> int:
        driver = self.start(**changes)
        _, said = driver.communicate(timeout=240)
        assert driver.returncode in (0, -signal.SIGKILL), said.decode()
        return driver.returncode

    @property
    def folder(self) -> Path:
        (folder,) = (self.store / "ingest").iterdir()
        return folder

    def digest(self) -> str:
        """Of the dataset's files: path and sha256 each, but for what a manifest says of how it was run."""
        found = []
        for path in sorted(self.folder.rglob("*")):
            data = path.read_bytes()
            if path.name == "manifest.json":
                manifest = json.loads(data)
                kept = {k: v for k, v in manifest.items() if k not in ("execution", "sha256")}
                data = json.dumps(kept, sort_keys=True).encode()
            found.append((path.relative_to(self.folder).as_posix(), hashlib.sha256(data).hexdigest()))
        assert not any(name.endswith(".partial") for name, _ in found), "something torn was left visible"
        return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()

    def done(self) -> set[str]:
        """Shards that are committed, and parts that were read."""
        shards = {path.stem for path in (self.store / "ingest").glob("*/*.parquet")}
        return shards | {path.name[:24] for path in (self.store / "cache").glob("sources/*/seen/*/*.parquet")}

    def check_repeats(self, before: set[str], since: int) -> list[str]:
        """The shards that were begun since; none of them, and no part, had been finished before."""
        lines = noted(Path(self.task.log))[since:]
        made = [name for what, name in lines if what == "made"]
        read = [hashlib.sha256(encode(name)).hexdigest()[:24] for what, name in lines if what == "read"]
        assert not before & {*made, *read}, "what was committed was made again"
        return made

    def log_size(self) -> int:
        return len(noted(Path(self.task.log)))


def check(world: World, count: int) -> None:
    """Nothing is lost, nothing is there twice."""
    dataset = Dataset.open(Storage.at(world.folder))
    dataset.verify()
    counts = dataset.manifest["counts"]
    broken = len(range(11, count, 50))
    assert (counts["inputs"], counts["rejected"]) == (count, broken)
    assert "poison" not in counts["reasons"]
    keys = [key for shard in dataset.shards for key in dataset.index(shard.name).keys]
    assert len(keys) == len(set(keys)) == count


def children_of(driver: int) -> list[psutil.Process]:
    """Disposable processes that a driver, or one of its workers, has right now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [p for p in psutil.Process(driver).children(recursive=True) if is_child(p)]
    return []


def is_child(process: psutil.Process) -> bool:
    """Forked by a nursery, whose command line it has."""
    with contextlib.suppress(psutil.Error):
        parent = process.parent()
        return parent is not None and is_nursery(process) and is_nursery(parent)
    return False


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def is_agent(process: psutil.Process) -> bool:
    """Ray's own, with which its node dies."""
    with contextlib.suppress(psutil.Error):
        return process.name().startswith(("ray::Dashboard", "ray::RuntimeEnv"))
    return False


def is_worker(process: psutil.Process) -> bool:
    """One that has work."""
    with contextlib.suppress(psutil.Error):
        return process.name().startswith("ray::") and process.name() != "ray::IDLE" and not is_agent(process)
    return False


def is_nursery(process: psutil.Process) -> bool:
    return "cluster.nursery" in process.cmdline()


DEATHS = [
    ("cache/sources/*/seen/*", 3),
    ("cache/sources/*/inputs/*/survey.json", 1),
    ("cache/sources/*/arranged/*/arrangement.json", 1),
    ("ingest/*/*.parquet", 3),
    ("ingest/*/manifest.json", 1),
]
"""Files of the store, and before the writing of the how manieth a driver dies."""


@pytest.mark.timeout(300)
def test_an_ingest_killed_on_its_way_ends_as_one_that_was_not(tmp_path: Path) -> None:
    count = 100
    pile(tmp_path / "images", count)
    worlds = {
        name: World(
            Task(
                images=str(tmp_path / "images"), store=str(tmp_path / name),
                log=str(tmp_path / f"{name}.log"),
                samples_per_shard=25,
            )
        )
        for name in ("whole", "killed")
    }  # fmt: skip
    assert worlds["whole"].run() == 0
    check(worlds["whole"], count)
    killed = worlds["killed"]
    for pattern, nth in DEATHS:
        before, since = killed.done(), killed.log_size()
        assert killed.run(die_at=pattern, nth=nth) == -signal.SIGKILL, f"nobody wrote {pattern}"
        killed.check_repeats(before, since)
    before, since = killed.done(), killed.log_size()
    assert killed.run() == 0
    assert killed.check_repeats(before, since) == []
    check(killed, count)
    assert killed.digest() == worlds["whole"].digest()
    # A child dies, and nobody else notices.
    shutil.rmtree(killed.folder)
    driver, dead = killed.start(), 0
    while driver.poll() is None:
        if not dead and (found := children_of(driver.pid)):
            found[0].kill()
            dead += 1
        time.sleep(0.005)
    _, said = driver.communicate()
    assert driver.returncode == 0, said.decode()
    assert dead == 1
    check(killed, count)
    assert killed.digest() == worlds["whole"].digest()


KILLS = 50
SHARES = {"driver": 1, "worker": 4, "child": 20}
"""How often each is killed where all are there: children live for a second, drivers for all of it."""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    # Ray's sockets lie in its folder, and their names may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="ik", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(3000)
def test_50_kills_of_drivers_workers_and_children_on_ray(tmp_path: Path, ray_folder: Path) -> None:
    count, draw, kills = 600, random.Random(0), Counter()
    pile(tmp_path / "images", count, side=500)
    task = Task(
        images=str(tmp_path / "images"), store=str(tmp_path / "whole"), log=str(tmp_path / "whole.log"),
        samples_per_shard=40,
    )  # fmt: skip
    whole = World(task)
    assert whole.run() == 0
    check(whole, count)
    shards = len(Dataset.open(Storage.at(whole.folder)).shards)
    assert shards == 20
    episode, ended = 0, Counter()
    while kills.total() < KILLS:
        world = World(
            dataclasses.replace(
                task,
                store=str(tmp_path / f"{episode}"),
                log=str(tmp_path / f"{episode}.log"),
                ray=str(ray_folder),
            )
        )
        begun: list[str] = []
        earlier = kills.total()
        while True:
            before, since = world.done(), world.log_size()
            code = harried(world, draw, kills)
            begun += world.check_repeats(before, since)
            ended[code] += 1
            if code == 0:
                break
        assert world.digest() == whole.digest()
        check(world, count)
        # What a kill undoes is what was in the hands of the killed: of a driver, of all its workers.
        assert len(begun) <= shards + task.workers * (kills.total() - earlier)
        episode += 1
    print(f"{dict(kills)}, {episode} runs to the end, drivers ended with {dict(ended)}")
    assert all(kills[kind] >= 5 for kind in ("driver", "worker", "child")), kills


def harried(world: World, draw: random.Random, kills: Counter[str]) -> int:
    """One driver on Ray, of whose processes one dies every other second; how it ended."""
    driver = world.start()
    known = psutil.Process(driver.pid)
    family: dict[int, psutil.Process] = {}
    ready = False
    try:
        while driver.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family |= {process.pid: process for process in known.children(recursive=True)}
            victims = {"driver": [known], "worker": [*filter(is_worker, family.values())]}
            victims["child"] = [*filter(is_child, family.values())]
            ready = ready or bool(victims["worker"])
            if ready and kills.total() < KILLS:
                kinds = [kind for kind in SHARES if victims[kind]]
                kind = draw.choices(kinds, [SHARES[kind] for kind in kinds])[0]
                with contextlib.suppress(psutil.NoSuchProcess):
                    draw.choice(victims[kind]).kill()
                    kills[kind] += 1
            time.sleep(draw.uniform(1.0, 2.5) if ready else 0.1)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            known.kill()
        _, said = driver.communicate()
        # Workers go with their driver, and children with their worker. Ray's agents take a minute.
        until = time.monotonic() + 60
        while (left := [p for p in family.values() if alive(p)]) and time.monotonic() < until:
            if all(is_agent(process) for process in left):
                break
            time.sleep(0.1)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        left = [process for process in left if not is_agent(process)]
    assert not left, f"left behind: {left}"
    if driver.returncode not in (0, -signal.SIGKILL):
        # Three workers that died on one item end a run, as they should; the same command goes on.
        assert b"its worker died 3 times" in said, said.decode()
    return driver.returncode
