"""What `latentmill plan` says of a run before it runs, and how soon."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from tests.benchmarks.results import LINES, Result

ROUNDS = 5


def bench_plan() -> Iterator[Result]:
    """Seconds of a plan of the recipe at real size, with its costs."""
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "pipelines", "plan", "text_to_image_256", "--store", store]

        def once() -> float:
            start = time.monotonic()
            subprocess.run(command, check=True, capture_output=True)
            return time.monotonic() - start

        seconds = sorted(once() for _ in range(ROUNDS))
    yield Result(
        name="line/plan_at_real_size",
        value=statistics.median(seconds),
        unit="s",
        target=3.0,
        better="lower",
        n=ROUNDS,
        spread=(seconds[0], seconds[-1]),
    )


def bench_plan_estimate() -> Iterator[Result]:
    """What `plan` says the quickstart takes on 2 cores, over what it took when it was last measured."""
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.costs.estimate import estimate
    from pipelines.runner.plan import plan

    measured = [json.loads(line) for line in LINES.read_text().splitlines()]
    took = next(line["value"] for line in reversed(measured) if line["name"] == "line/quickstart")
    with tempfile.TemporaryDirectory() as store:
        found = estimate(plan(config.load("quickstart", []), Storage.at(store)), cores=2.0)
    said = found.total.seconds or 0.0
    yield Result(
        name="line/plan_over_measured",
        value=said / took,
        unit="ratio",
        better="lower",
        against=f"measured: {took:.0f} s, estimated: {said:.0f} s",
        note="quickstart from an empty store; rates were measured on the same kind of machine",
    )
