"""What a cluster costs beside the same run here: seconds to the first task, and a short recipe as a whole.

One node on this machine, so that both have the same cores; it is up, and has been sent the packages once.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.results import Result
from tests.cluster.ray_head import Head, head, until
from tests.test_end_to_end import emoji

RECIPE = """
name: short
stages:
  images: {stage: ingest, source: {kind: folder, path: emoji}, size: 48, samples_per_shard: 200}
  captions: {stage: caption, images: images, captioners: [{kind: template, text: "a 3D emoji of {text}"}]}
  vae: {stage: train_autoencoder, images: images, images_seen: 1600, batch: 16,
    autoencoder: {kind: kl, latent_channels: 4, channels: 32, multipliers: [1, 2], stem: 2, blocks: 1},
    optimization: {warmup: 160, cooldown: 320}, resources: {cpus: 1}}
  latents: {stage: encode, images: images, autoencoder: vae}
"""
REPEAT = 3


def bench_cluster() -> Iterator[Result]:
    """A recipe by `submit`, and by `run`, in turn, each into an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        emoji(place / "emoji", slice(0, 1600, 2))
        (place / "short.yaml").write_text(RECIPE)
        with head(place) as cluster:
            cold = _to_first_task(cluster, "cold")
            warm = [_to_first_task(cluster, f"first-{n}") for n in range(REPEAT)]
            pairs = [(_submitted(cluster, f"there-{n}"), _run(cluster, f"here-{n}")) for n in range(REPEAT)]
    yield Result(
        name="cluster/submit_to_first_task",
        value=statistics.median(warm),
        unit="s",
        target=20.0,
        better="lower",
        against=f"the first time, with the packages to be sent: {cold:.1f} s",
        n=REPEAT,
        spread=(min(warm), max(warm)),
        note="from the command to the start of the first worker's task, one node on this machine",
    )
    ratios = [there / here for there, here in pairs]
    there, here = (statistics.median(column) for column in zip(*pairs, strict=True))
    yield Result(
        name="cluster/overhead",
        value=statistics.median(ratios),
        unit="ratio",
        target=1.25,
        better="lower",
        against=f"`run` here, its own Ray included: {here:.0f} s; `submit --follow`: {there:.0f} s",
        n=REPEAT,
        spread=(min(ratios), max(ratios)),
        note="four stages on 800 emoji, wall-clock seconds of both commands, pairs in turn",
    )


def _to_first_task(cluster: Head, store: str) -> float:
    start = time.time()
    told = cluster.run("submit", "short.yaml", "--store", store, "--until", "images", "--detach")
    name = next(line.split()[1] for line in told.splitlines() if line.startswith("job "))

    def begun() -> list[float]:
        listed = cluster.get("/api/v0/tasks?detail=1&limit=10000")["data"]["result"]["result"]
        tasks = [task for task in listed if task["name"].startswith("images 0") and task["start_time_ms"]]
        return [t for task in tasks if (t := task["start_time_ms"] / 1000) > start]

    first = min(until(begun)) - start
    until(lambda: '"succeeded"' in cluster.run("jobs", name, "--json"))
    return first


def _submitted(cluster: Head, store: str) -> float:
    start = time.monotonic()
    cluster.run("submit", "short.yaml", "--store", store, "--follow")
    return time.monotonic() - start


def _run(cluster: Head, store: str) -> float:
    start = time.monotonic()
    cluster.run("run", "short.yaml", "--store", store, RAY_AUTH_MODE="disabled")
    return time.monotonic() - start
