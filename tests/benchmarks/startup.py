"""Seconds that a user waits: for help, for a run that has nothing to do, for the first picture."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.results import Result

COMMAND = str(Path(sys.executable).with_name("latentmill"))


def seconds(*command: str, repeat: int, **environment: str) -> list[float]:
    """Wall-clock seconds of each of `repeat` runs of a command that must succeed."""
    taken = []
    for _ in range(repeat):
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
        taken.append(time.monotonic() - start)
    return taken


def timed(name: str, target: float, taken: list[float], against: str, note: str = "") -> Result:
    return Result(
        name=name,
        value=statistics.median(taken),
        unit="s",
        target=target,
        better="lower",
        against=against,
        n=len(taken),
        spread=(min(taken), max(taken)),
        note=note,
    )


def bench_help() -> Iterator[Result]:
    """`latentmill --help`, beside an interpreter that does nothing."""
    bare = statistics.median(seconds(sys.executable, "-c", "pass", repeat=7))
    yield timed("line/help", 0.5, seconds(COMMAND, "--help", repeat=7), f"python -c pass: {bare:.3f} s")


def bench_first_picture() -> Iterator[Result]:
    """Three prompts drawn by the shipped model, from the command to the files, in a cold process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [COMMAND, "generate", "a red fox", "a birthday cake", "a rocket", "--out", folder]
        taken = seconds(*command, repeat=3)
    yield timed("line/first_picture", 60.0, taken, "", "three prompts by the shipped model")
