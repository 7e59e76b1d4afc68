"""The order and the manifest of web datasets: what they take in memory, and how long they take to open."""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.results import Result

SAMPLES, WORLD = 2_000_000_000, 1024
"""Of the dataset and the training that everything is projected to."""
EACH = 10_000
"""Samples a shard."""
SIZE = 16_384
"""Bytes of a sample at full size: moments of 8 x 32 x 32 in fp16, an image of 256 px."""
TINY = 512
"""Bytes of one on disk here."""
RATE = 100.0
"""Images/s of a rank, by which reads per second are told."""
BATCH = 2048
PAIRS = 5


def _full(seed: int) -> tuple[Any, float]:
    """One epoch's order of all samples, and seconds until the first batch at a random place of it."""
    from pipelines.shuffling import ShuffleConfig
    from pipelines.stream import Line, TrainingStream

    bounds = np.arange(0, SAMPLES + 1, EACH, dtype=np.int64)
    line = Line(length=SAMPLES, bounds=bounds)
    place = random.Random(seed).randrange(SAMPLES // BATCH) * BATCH
    start = time.perf_counter()
    stream = TrainingStream(
        SAMPLES,
        seed,
        BATCH,
        rank=seed % WORLD,
        world=WORLD,
        images_seen=place,
        lines=(line,),
        shuffle=ShuffleConfig(),
    )
    next(iter(stream))
    return stream, time.perf_counter() - start


def bench_stream_index() -> Iterator[Result]:
    """Memory and start of the order of 2 billion samples on one of 1,024 ranks: no projection."""
    runs = [_full(seed) for seed in range(PAIRS)]
    stream, seconds = runs[0][0], [taken for _, taken in runs]
    (order,) = stream._cells[0]._orders.values()
    held = order.nbytes + 2 * 8 * (SAMPLES // EACH)  # and the shards' first rows and blocks
    yield Result(
        name="train/stream_index_memory_2_billion",
        value=held / 2**20,
        unit="MiB a rank",
        better="lower",
        target=256,
        against=f"a permutation of all samples: {SAMPLES * 8 / 2**20:,.0f} MiB",
        note=f"{len(order.blocks):,} blocks; measured at full size",
    )
    yield Result(
        name="train/stream_restart_2_billion",
        value=statistics.median(seconds),
        unit="s",
        better="lower",
        target=8.0,
        n=len(seconds),
        spread=(min(seconds), max(seconds)),
        note="the order alone, from nothing to the first batch at a random place; measured at full size",
    )
    ahead = iter(stream)
    start = time.perf_counter()
    count = sum(len(indices) for _, indices in itertools.islice(ahead, 2000))
    yield Result(
        name="train/stream_places_found",
        value=count / (time.perf_counter() - start),
        unit="samples/s a rank",
        better="higher",
        target=100 * RATE,
        note="a share of 2 samples at a time, as each of 1,024 ranks has",
    )


def bench_stream_manifest() -> Iterator[Result]:
    """What a rank holds of 200,000 shards before it reads one, and how long opening them takes."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1) as pool:
        size = pool.submit(_manifest, folder, SAMPLES // EACH).result()
        held, opened, counted = pool.submit(_opened, folder).result()
    yield Result(
        name="train/stream_manifest_2_billion",
        value=held / 2**20,
        unit="MiB a rank and dataset",
        better="lower",
        target=50,
        note=f"growth of the process; the manifest of {SAMPLES // EACH:,} shards is {size / 2**20:.0f} MiB",
    )
    yield Result(
        name="train/stream_open_2_billion",
        value=opened + counted,
        unit="s a dataset",
        better="lower",
        target=30.0,
        note=f"manifest read and checked: {opened:.1f} s; rows counted: {counted:.1f} s",
    )


def _manifest(folder: str, shards: int) -> int:
    from cluster.storage import Storage
    from pipelines.dataset import describe, write_manifest
    from pipelines.shards import ShardInfo

    infos = [
        ShardInfo(
            name=f"{n:06d}",
            split="train",
            samples=EACH,
            rejected=0,
            bytes=EACH * SIZE,
            sha256=f"{n:064x}",
            columns={"moments.npy": {"count": EACH, "bytes": EACH * SIZE, "digest": f"{n:064x}"}},
            index=f"{n:064x}",
        )
        for n in range(shards)
    ]
    write_manifest(Storage.at(folder), describe(infos, stage="bench"))
    return (Path(folder) / "manifest.json").stat().st_size


def _opened(folder: str) -> tuple[int, float, float]:
    """Bytes that the process grew by, seconds to open and to count."""
    import gc

    import psutil

    from cluster.storage import Storage
    from pipelines.dataset import Dataset

    rows_of(_shard_of_one(folder))  # so that what is imported does not count
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    given = Dataset.open(Storage.at(folder))
    opened = time.perf_counter()
    rows = rows_of(given)
    counted = time.perf_counter()
    gc.collect()
    assert len(rows) == SAMPLES
    return psutil.Process().memory_info().rss - before, opened - start, counted - opened


def _shard_of_one(folder: str) -> Any:
    from cluster.storage import Storage
    from pipelines.dataset import Dataset, describe, write_manifest

    place = Storage.at(folder).folder("one")
    write_manifest(place, describe([shard(place.url, 0, 1)], stage="bench"))
    return Dataset.open(place)


def shard(folder: str, number: int, each: int) -> Any:
    from cluster.storage import Storage
    from pipelines.shards import write_shard
    from pipelines.stage import Row, Sample

    data = np.random.default_rng(number).bytes(each * TINY)
    pairs = (
        (Row(key=key), Sample(key=key, members={"moments.npy": data[n * TINY : (n + 1) * TINY]}))
        for n in range(each)
        for key in (f"{number * each + n:012d}",)
    )
    return write_shard(Storage.at(folder), f"{number:05d}", pairs, split="train")


def rows_of(given: Any, cache: Any = None) -> Any:
    from pipelines.training.tasks.rows import Rows

    return Rows({"latents": given}, split="train", required={"latents": "moments.npy"}, cache=cache)
