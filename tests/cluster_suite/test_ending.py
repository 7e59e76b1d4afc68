"""`latentmill run` on Ray that is told to end: one checkpoint, exit status 75, and no step twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import gangs
from tests.cluster.command import RECIPE

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.fixture
def folder() -> Iterator[Path]:
    # Ray's sockets lie in it, and their names may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "count.yaml").write_text(RECIPE.format(folder=folder))
        yield Path(folder)


def command(folder: Path, *flags: str) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "LATENTMILL_STORE": str(folder / "store"),
        "RAY_TMPDIR": str(folder),
        "RAY_worker_niceness": "0",
        "LATENTMILL_GRACE": "120",  # a machine with much else to do
        "OMP_NUM_THREADS": "1",
    }
    env.pop("RAY_ADDRESS", None)
    words = [sys.executable, "-m", "tests.cluster.command", "run", str(folder / "count.yaml"), *flags]
    return subprocess.Popen(
        words, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def steps(folder: Path) -> list[int]:
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_end_goes_on_where_it_was(folder: Path, number: int, status: int) -> None:
    run, end = command(folder), time.monotonic() + 600
    while len(steps(folder)) < 10:
        assert run.poll() is None, run.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.2)
    told = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as a terminal does: all processes that were started there
    else:
        run.send_signal(number)
    _, said = run.communicate(timeout=300)
    print(f"\nfrom the signal to the end: {time.monotonic() - told:.1f} s")
    assert run.returncode == status, said[-3000:]
    assert "goes on from here" in said
    done = len(steps(folder))
    assert json.loads((folder / "checkpoint.json").read_text()) == {"step": done}
    again = command(folder, "--counted.steps", str(done + 5))
    _, said = again.communicate(timeout=600)
    assert again.returncode == 0, said[-3000:]
    assert steps(folder) == list(range(done + 5))
    gangs.check(folder, done + 5)
