"""The quickstart from an empty store: what each stage takes, what comes out, and that again does nothing."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Result
from tests.benchmarks.startup import COMMAND, seconds, timed


def bench_quickstart() -> Iterator[Result]:
    """`latentmill run quickstart`, its stages' seconds, its scores, and the same command again."""
    with tempfile.TemporaryDirectory() as folder:
        store = os.environ.get("LATENTMILL_BENCH_STORE") or str(Path(folder, "store"))
        start = time.monotonic()
        subprocess.run([COMMAND, "run", "quickstart", "--store", store], check=True)
        whole = time.monotonic() - start
        again = seconds(COMMAND, "run", "quickstart", "--store", store, repeat=5)
        told = subprocess.run(
            [COMMAND, "run", "quickstart", "--store", store, "--json"],
            check=True,
            capture_output=True,
            text=True,
        )
        summary = json.loads(told.stdout)
        manifests = {
            stage["name"]: json.loads(
                Path(stage["folder"].removeprefix("file://"), "manifest.json").read_text()
            )
            for stage in summary["stages"]
        }
    yield Result(
        name="line/quickstart",
        value=whole,
        unit="s",
        target=600.0,
        better="lower",
        note="`latentmill run quickstart` from an empty store, after installation",
    )
    for name, manifest in manifests.items():
        taken = manifest["execution"]["seconds"]
        yield Result(name=f"line/quickstart_{name}", value=taken, unit="s", better="lower")
    yield timed("line/noop_rerun", 3.0, again, f"first run: {whole:.0f} s")
    yield from scores(summary["scores"])


def scores(found: dict[str, Any]) -> Iterator[Result]:
    """What `evaluate` measured, as results: 95 % intervals, and the floor of each distance beside it."""
    floor = next(row["kid"] for row in found["rows"] if row["role"] == "floor")
    low, value, high = (1000 * floor[part] for part in ("low", "value", "high"))
    told = f"floor, real against real: {value:.1f} ({low:.1f} to {high:.1f})"
    for row in found["rows"]:
        kid = row["kid"]
        yield Result(
            name=f"line/quickstart_kid_{row['name']}",
            value=1000 * kid["value"],
            unit=f"{found['name']} x 1000",
            better="lower",
            against=told,
            n=row["n"],
            spread=(1000 * kid["low"], 1000 * kid["high"]),
            note=row["label"] + "; 95 % interval",
        )
    text = found["conditioning"]
    yield Result(
        name="line/quickstart_text_gap",
        value=text["difference"],
        unit="loss",
        target=0.0,
        better="higher",
        against=f"held-out loss, true captions: {text['true']:.4f}, shuffled: {text['shuffled']:.4f}",
        n=text["n"],
        spread=(text["low"], text["high"]),
        note="paired; 95 % interval",
    )
