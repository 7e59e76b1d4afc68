"""Ingest beside what else there is: the same JPEGs, the same number of processes, in turn within one run."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.pile import pile
from tests.benchmarks.results import Result

IMAGES = 4000
"""Of each timed run: some seconds of work."""
FEW = 800
"""Of the run whose memory five times as many must not exceed."""
ROUNDS = 3
IMG2DATASET = "LATENTMILL_IMG2DATASET"
"""Names the Python of an environment that has img2dataset, whose dependencies are not ours, and Pillow."""


def bench_data_resize() -> Iterator[Result]:
    """Images/s of ingest to 256 px JPEGs over the bare loop, img2dataset, Ray Data and ShardWriter."""
    others = ["bare", "ray_data", "shard_writer", *(["img2dataset"] if os.environ.get(IMG2DATASET) else [])]
    runs, size = _rounds(["ours", *others])
    targets = {"bare": 0.9, "img2dataset": 1.5, "ray_data": 1.5}
    for other in others:
        yield _ratio(f"data/resize_over_{other}", runs, "ours", other, targets.get(other), size)


def bench_data_keep() -> Iterator[Result]:
    """Images/s of ingest that keeps bytes over Ray Data, and its time over tar and sha256."""
    runs, size = _rounds(["ours_whole", "ray_data_whole", "tar"])
    yield _ratio("data/keep_over_ray_data", runs, "ours_whole", "ray_data_whole", 4.0, size)
    slower = [a / b for a, b in zip(runs["ours_whole"], runs["tar"], strict=True)]
    yield Result(
        name="data/keep_time_over_tar_sha256",
        value=statistics.median(slower),
        unit="ratio",
        target=1.3,
        better="lower",
        against=_told("ours", runs["ours_whole"], size) + "; " + _told("tar", runs["tar"], size),
        n=ROUNDS,
        spread=(min(slower), max(slower)),
        note="validate: header, equal files found; in turn; smallest and largest ratio",
    )


def bench_data_checked() -> Iterator[Result]:
    """Images/s of ingest that decodes all and finds near-duplicates, over decoding alone."""
    runs, size = _rounds(["ours_checked", "bare_decode"])
    yield _ratio("data/checked_over_bare_decode", runs, "ours_checked", "bare_decode", 0.9, size)


def bench_data_memory() -> Iterator[Result]:
    """Peak memory of the whole of ingest with five times the images, over that with as many."""
    few, _ = _memory(pile(FEW))
    many, seconds = _memory(pile(IMAGES))
    yield Result(
        name="data/memory_five_times_the_images",
        value=many / few,
        unit="ratio",
        target=1.15,
        better="lower",
        against=f"{FEW:,} images: {few / 2**20:.0f} MiB, {IMAGES:,}: {many / 2**20:.0f} MiB",
        note=f"largest sum over all its processes and Ray's (PSS), sampled; {IMAGES / seconds:.0f} images/s",
    )


def bench_data_scaled() -> Iterator[Result]:
    """PSNR of 256 px images by scaled decoding and area against full decoding and area."""
    import numpy as np
    from PIL import Image

    from pipelines.sources.decode import decode
    from pipelines.sources.fit import fit

    found = []
    for path in sorted(pile(IMAGES).rglob("*.jpg"))[:1000]:
        data = path.read_bytes()
        scaled, whole = (
            np.asarray(
                fit(
                    decode(
                        data, background="#ffffff", max_bytes=1 << 26, max_pixels=1 << 26, smallest=smallest
                    ),
                    size=256,
                    resize="crop",
                    background="#ffffff",
                    resample="area",
                )[0].convert("RGB")
            ).astype(float)
            for smallest in (256, None)
        )
        error = ((scaled - whole) ** 2).mean()
        found.append(99.0 if error == 0 else 10 * np.log10(255**2 / error))
    assert Image
    for name, value, target in (
        ("data/scaled_decode_psnr_median", float(np.median(found)), 40.0),
        ("data/scaled_decode_psnr_1st_percentile", float(np.percentile(found, 1)), 30.0),
    ):
        yield Result(
            name=name, value=value, unit="dB", target=target, better="higher", n=len(found),
            against="full decoding, then the mean of areas",
        )  # fmt: skip


def _rounds(names: Sequence[str]) -> tuple[Mapping[str, list[float]], tuple[int, float]]:
    """Seconds of each contender, in turn; images and MB of what they worked on."""
    images = pile(IMAGES)
    megabytes = sum(path.stat().st_size for path in images.rglob("*.jpg")) / 1e6
    runs: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            runs[name].append(_run(name, images)[0])
    return runs, (IMAGES, megabytes)


def _run(name: str, images: Path, *, watched: bool = False) -> tuple[float, int]:
    """Seconds, and the peak of all its processes' memory if it is watched."""
    python = os.environ[IMG2DATASET] if name == "img2dataset" else sys.executable
    folder = tempfile.mkdtemp(prefix="contender-")
    command = [python, "-m", "tests.benchmarks.contenders", name, str(images), f"{folder}/out"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = [0]
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(child.pid, peak, ended))
    try:
        if watched:
            watcher.start()
        out, errors = child.communicate()
    finally:
        ended.set()
        shutil.rmtree(folder, ignore_errors=True)
    if child.returncode:
        raise RuntimeError(f"{name} ended with {child.returncode}: {errors[-500:]}")
    return float(json.loads(out.strip().splitlines()[-1])["seconds"]), peak[0]


def _memory(images: Path) -> tuple[int, float]:
    seconds, peak = _run("ours", images, watched=True)
    return peak, seconds


def _watch(pid: int, peak: list[int], ended: threading.Event) -> None:
    import psutil

    while not ended.wait(0.5):
        total = 0
        try:
            processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return
        for process in processes:
            try:
                total += process.memory_full_info().pss
            except (psutil.Error, AttributeError):
                continue
        peak[0] = max(peak[0], total)


def _ratio(
    name: str,
    runs: Mapping[str, list[float]],
    ours: str,
    other: str,
    target: float | None,
    size: tuple[int, float],
) -> Result:
    ratios = [b / a for a, b in zip(runs[ours], runs[other], strict=True)]
    return Result(
        name=name,
        value=statistics.median(ratios),
        unit="ratio",
        target=target,
        better="higher",
        against=_told("ours", runs[ours], size) + "; " + _told(other, runs[other], size),
        n=ROUNDS,
        spread=(min(ratios), max(ratios)),
        note=f"{size[0]:,} JPEGs of 256 to 1,024 px, as many processes; in turn; smallest and largest ratio",
    )


def _told(name: str, seconds: Sequence[float], size: tuple[int, float]) -> str:
    took = statistics.median(seconds)
    return f"{name}: {size[0] / took:.0f} images/s, {size[1] / took:.0f} MB/s"
