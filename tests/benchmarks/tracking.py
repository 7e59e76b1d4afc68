"""What an MLflow that is away costs a training: nothing, the target says.

STEPS and PAIRS in the environment make it shorter, to see that it works.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.storage import Storage
from tests.benchmarks.ratios import PAIRS, interleaved
from tests.benchmarks.results import Result
from tests.benchmarks.training import STEPS, line, shortened
from tests.pipelines import tiny

AWAY = ("refusing", "silent")
"""Nothing listens, or nothing answers what is sent."""


@contextlib.contextmanager
def tracked(how: str) -> Iterator[None]:
    """An MLflow that is there (SQLite in the store), or an address where none answers."""
    before = os.environ.pop("MLFLOW_TRACKING_URI", None)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if how == "silent":
            server.listen()
        if how in AWAY:
            os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{server.getsockname()[1]}"
        try:
            yield
        finally:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before


def wall(how: str, stage: Any, inputs: Any) -> float:
    """Seconds from a training's begin until its record is closed, as at the end of a run."""
    from pipelines.tracking import Tracker

    with tempfile.TemporaryDirectory() as folder, tracked(how):
        store = Storage.at(Path(folder))
        tracker = Tracker(store, "tracked")
        session = tiny.session(Path(folder), inputs)

        def event(told: dict[str, Any]) -> None:
            tracker({**told, "stage": "model", "time": time.time()})

        session.event = event  # pyright: ignore[reportAttributeAccessIssue]
        start = time.monotonic()
        tracker({"kind": "stage_start", "stage": "model", "time": time.time(), "fingerprint": "f"})
        stage.run(session)
        # What an MLflow that is there has not taken yet is not a training's time.
        tracker.close(seconds=20.0 if how in AWAY else 0.0)
        return time.monotonic() - start


def bench_mlflow_down() -> Iterator[Result]:
    """The quickstart's denoiser, MLflow away for all of the run, over the same with MLflow there, in turn."""
    planned = line()["model"]
    stage = shortened(planned.stage)
    inputs = planned.open()
    for how in AWAY:
        away, there = interleaved(
            lambda how=how: wall(how, stage, inputs), lambda: wall("there", stage, inputs)
        )
        ratios = [x / y for x, y in zip(away, there, strict=True)]
        yield Result(
            name=f"train/mlflow_{how}",
            value=statistics.median(ratios),
            unit="ratio",
            target=1.01,
            better="lower",
            against=f"there: {statistics.median(there):.3g} s, away: {statistics.median(away):.3g} s",
            n=PAIRS,
            spread=(min(ratios), max(ratios)),
            note=f"{STEPS} steps; pairs in turn; smallest and largest ratio",
        )
