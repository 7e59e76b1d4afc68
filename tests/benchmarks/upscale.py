"""The upscaler's recipe from an empty store: what it makes of held-out images, beside bicubic."""

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
from tests.benchmarks.startup import COMMAND

MEASURES = {"lpips": ("LPIPS-HED", "lower"), "psnr": ("dB", "higher"), "consistency": ("dB", "higher")}


def bench_upscale() -> Iterator[Result]:
    """`latentmill run upscale`, and its three measures on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        store = os.environ.get("LATENTMILL_BENCH_UPSCALE") or str(Path(folder, "store"))
        start = time.monotonic()
        subprocess.run([COMMAND, "run", "upscale", "--store", store], check=True)
        whole = time.monotonic() - start
        planned = subprocess.run(
            [COMMAND, "plan", "upscale", "--store", store, "--json"],
            check=True,
            capture_output=True,
            text=True,
        )
        stages = {stage["name"]: stage for stage in json.loads(planned.stdout)["stages"]}
        place = Path(stages["report"]["folder"].removeprefix("file://"))
        found = json.loads((place / "metrics.json").read_text())
        seconds = [
            json.loads(Path(s["folder"].removeprefix("file://"), "manifest.json").read_text())["execution"][
                "seconds"
            ]
            for s in stages.values()
        ]
    took = f"this run: {whole:.0f} s; its stages, when they ran: {sum(seconds):.0f} s"
    bicubic, *models = found["rows"]
    for model in models:
        for name, (unit, better) in MEASURES.items():
            yield _result(model, bicubic, name, unit, better, note=took)


def _result(
    model: dict[str, Any], bicubic: dict[str, Any], name: str, unit: str, better: str, *, note: str
) -> Result:
    """A measure of a model, met where it is better than bicubic's; the interval is the measure's own."""
    gain = model[f"{name}_over_bicubic"]
    return Result(
        name=f"sr/{model['name']}_{name}",
        value=model[name]["value"],
        unit=unit,
        target=bicubic[name]["value"] if name != "consistency" else 45.0,
        better=better,  # pyright: ignore[reportArgumentType]
        against=f"bicubic: {bicubic[name]['value']:.4g}; "
        f"paired difference {gain['value']:+.4g} ({gain['low']:+.4g} to {gain['high']:+.4g})",
        n=model["n"],
        spread=(model[name]["low"], model[name]["high"]),
        note=f"{note}; 95 % interval over images",
    )
