"""Settings that every test shares: no telemetry, no network, quiet and small Ray, threads, and the order."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # at its 15 they hardly run beside other tests
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

MEMORY = Path("/dev/shm")
NEEDED = 6 * 2**30


def roomy() -> bool:
    """Whether there is a file system in memory, with room, from which tests may also execute."""
    if not MEMORY.is_dir():
        return False
    at = os.statvfs(MEMORY)
    free = min(at.f_bavail * at.f_frsize, psutil.virtual_memory().available)
    return free > NEEDED and not at.f_flag & os.ST_NOEXEC


if roomy():  # some forty thousand files are written through to the disk, at milliseconds each
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

THREADS = os.environ.get("OMP_NUM_THREADS")
LONGEST = tuple(
    f"tests/{name}.py"
    for name in (
        "pipelines/training/test_trainer",
        "cluster/test_mapping",
        "test_end_to_end",
        "test_line_on_s3",
        "pipelines/training/test_parallel",
        "pipelines/training/test_kills",
        "pipelines/training/test_injections",
        "pipelines/test_tracking",
        "pipelines/stages/test_promote",
        "pipelines/stages/test_judge",
        "pipelines/test_upscaler",
        "pipelines/stages/test_edit",
        "pipelines/inspection/test_garbage",
    )
)
"""Files that are begun first, so that none of them is left for one process when the others have finished."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A stage that ran in this process has left it the threads it was given: with those of the processes
    beside it they are more than there are cores, and what comes after takes up to nine times as long."""
    if THREADS is None:
        return
    os.environ["OMP_NUM_THREADS"] = THREADS
    if "torch" in sys.modules and sys.modules["torch"].get_num_threads() != int(THREADS):
        sys.modules["torch"].set_num_threads(int(THREADS))
