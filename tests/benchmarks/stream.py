"""The stream of samples at the size of web datasets: what its index takes, and how it reads."""

from __future__ import annotations

import itertools
import os
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
SCALE = 1000
"""The dataset on disk is so many times smaller, and stands for what one rank of `WORLD` sees of the whole."""
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
        target=1024,
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

    _rows(_shard_of_one(folder))  # so that what is imported does not count
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    given = Dataset.open(Storage.at(folder))
    opened = time.perf_counter()
    rows = _rows(given)
    counted = time.perf_counter()
    gc.collect()
    assert len(rows) == SAMPLES
    return psutil.Process().memory_info().rss - before, opened - start, counted - opened


def _shard_of_one(folder: str) -> Any:
    from cluster.storage import Storage
    from pipelines.dataset import Dataset, describe, write_manifest

    place = Storage.at(folder).folder("one")
    write_manifest(place, describe([_shard(place.url, 0, 1)], stage="bench"))
    return Dataset.open(place)


def _shard(folder: str, number: int, each: int) -> Any:
    from cluster.storage import Storage
    from pipelines.shards import write_shard
    from pipelines.stage import Row, Sample

    chance = np.random.default_rng(number)
    pairs = (
        (Row(key=f"{n:012d}"), Sample(key=f"{n:012d}", members={"moments.npy": chance.bytes(TINY)}))
        for n in range(number * each, (number + 1) * each)
    )
    return write_shard(Storage.at(folder), f"{number:05d}", pairs, split="train")


def dataset(folder: Path, *, samples: int = SAMPLES // SCALE, each: int = EACH) -> Any:
    """Tiny samples of random bytes, written by this project's own shards."""
    from cluster.storage import Storage
    from pipelines.dataset import Dataset, describe, write_manifest

    count = samples // each
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        shards = list(pool.map(_shard, [str(folder)] * count, range(count), [each] * count))
    write_manifest(Storage.at(folder), describe(shards, stage="bench"))
    return Dataset.open(Storage.at(folder))


def _far(folder: Path) -> Any:
    """The same folder as a store that only answers requests, and counts them."""
    from cluster.storage import LocalStorage, Storage

    near = LocalStorage(folder)

    class Far(Storage):
        url = f"far://{folder}"
        requests = 0

        def read(self, name: str) -> bytes:
            type(self).requests += 1
            return near.read(name)

        def read_range(self, name: str, offset: int, size: int) -> bytes:
            type(self).requests += 1
            return near.read_range(name, offset, size)

    for name in Storage.__abstractmethods__ - {"read", "read_range"}:
        setattr(Far, name, getattr(near, name))
    Far.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    return Far()


def bench_stream_reads() -> Iterator[Result]:
    """1/1000 of the samples on disk: what the ranks of one node ask a remote store for, and how fast a local
    one is read."""
    with tempfile.TemporaryDirectory() as folder:
        yield from measured(Path(folder), samples=SAMPLES // SCALE, each=EACH)


def measured(folder: Path, *, samples: int, each: int, ranks: int = 8, seen: int = 2) -> Iterator[Result]:
    """`ranks` neighbours of `WORLD`, through `seen` windows; then one reader against others."""
    given = dataset(folder / "data", samples=samples, each=each)
    _rows(given)  # so that what is imported does not count
    start = time.perf_counter()
    rows = _rows(given)
    opened = time.perf_counter() - start
    whole = _stream(rows).shuffle.window * seen // BATCH
    start = time.perf_counter()
    first = next(iter(_stream(rows, rank=5, images_seen=samples // 2 // BATCH * BATCH)))[1]
    rows.read(int(first[0]), "latents", "moments.npy")
    resumed = opened + time.perf_counter() - start
    yield Result(
        name="train/stream_open_and_seek",
        value=resumed,
        unit="s",
        better="lower",
        target=8.0,
        note=f"{samples:,} samples in {samples // each} shards, to the first sample's bytes",
    )

    yield from _remote(folder, given, whole=whole, ranks=ranks)

    numbers = np.concatenate(
        [indices for _, indices in itertools.islice(_stream(rows, rank=0, world=8), 100)]
    )
    _speed(rows, numbers)  # what the indices take once is told above
    ours = [_speed(rows, numbers) for _ in range(PAIRS)]
    plain = [_plain(folder / "data", rows, numbers) for _ in range(PAIRS)]
    web = [_webdataset(folder / "data", len(numbers)) for _ in range(PAIRS)]
    for name, theirs, what, target in (
        ("plain_pread", plain, "os.pread of the same bytes from known places, digests unchecked", None),
        ("webdataset", web, "webdataset's sequential reader of the same tars, digests unchecked", 1.0),
    ):
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        yield Result(
            name=f"train/stream_over_{name}",
            value=statistics.median(ratios),
            unit="ratio",
            better="higher",
            target=target,
            against=f"{what}: {statistics.median(theirs):,.0f}/s; ours {statistics.median(ours):,.0f}/s",
            n=len(ratios),
            spread=(min(ratios), max(ratios)),
            note=f"random within windows, {TINY} bytes a sample, every digest checked, one thread",
        )


def _rows(given: Any, cache: Any = None) -> Any:
    from pipelines.training.tasks.rows import Rows

    return Rows({"latents": given}, split="train", required={"latents": "moments.npy"}, cache=cache)


def _stream(rows: Any, *, rank: int = 0, world: int = WORLD, images_seen: int = 0) -> Any:
    from pipelines.shuffling import ShuffleConfig
    from pipelines.stream import Line, TrainingStream

    line = Line(length=len(rows), bounds=rows.starts)
    # A thousandth of the samples needs a window that is as much smaller, to have as many of them; not as
    # many lanes, each of which would be of one sample then.
    shuffle = ShuffleConfig(window=min(2**20, len(rows) // 2 // 1024 * 1024))
    return TrainingStream(
        len(rows),
        0,
        BATCH,
        rank=rank,
        world=world,
        images_seen=images_seen,
        lines=(line,),
        shuffle=shuffle,
    )


def _remote(folder: Path, given: Any, *, whole: int, ranks: int) -> Iterator[Result]:
    """What the ranks of a node ask for while they pass through windows, with one cache."""
    from pipelines.dataset import Dataset
    from pipelines.shard_cache import CacheConfig

    store = _far(folder / "data")
    remote = Dataset(store, given.manifest)
    rows = _rows(remote, CacheConfig(folder=str(folder / "cache")))
    cache, seen, wanted = rows.members["latents"].cache, 0, set()
    streams = [iter(_stream(rows, rank=rank)) for rank in range(ranks)]
    for _ in range(whole):
        for stream in streams:
            _, indices = next(stream)
            for number in indices.tolist():
                rows.read(number, "latents", "moments.npy")
                wanted.add(rows.place(number))
            seen += len(indices)
    indices = {shard for shard, _ in wanted}
    blocks = store.requests - len(indices)
    yield Result(
        name="train/stream_requests_of_a_rank",
        value=blocks / seen * RATE,
        unit="requests/s",
        better="lower",
        target=2.0,
        against=f"one of each sample: {RATE:.0f}/s",
        note=f"at {RATE:.0f} images/s a rank; {ranks} of {WORLD:,} ranks share a node's cache; "
        f"{seen:,} samples of {blocks:,} blocks",
    )
    bare = 1024 + -(-TINY // 512) * 512 - 512
    size = sum(given.info(shard).bytes for shard in indices) / len(indices)
    fetched = cache.fetched - sum((folder / "data" / f"{shard}.parquet").stat().st_size for shard in indices)
    yield Result(
        name="train/stream_bytes_used",
        value=len(wanted) * bare / fetched,
        unit="share",
        better="higher",
        target=0.8,
        note="of ranges read in sequence, tar headers among them; what is left, at the ends of stretches, is "
        "another node's",
    )
    parquet = (folder / "data" / f"{next(iter(indices))}.parquet").stat().st_size
    block = SIZE * 512
    yield Result(
        name="train/stream_index_bytes",
        value=parquet * len(indices) / (blocks * block),
        unit="ratio",
        better="lower",
        target=0.25,
        note=f"an index of {parquet:,} bytes is read for a few blocks of {block:,} at full size; "
        f"{size:,.0f} bytes a shard here",
    )


def _speed(rows: Any, numbers: np.ndarray) -> float:
    start = time.perf_counter()
    for number in numbers.tolist():
        rows.read(number, "latents", "moments.npy")
    return len(numbers) / (time.perf_counter() - start)


def _plain(folder: Path, rows: Any, numbers: np.ndarray) -> float:
    """The same bytes, from places that are known."""
    files: dict[str, int] = {}
    wanted = []
    for number in numbers.tolist():
        shard, n = rows.place(number)
        if shard not in files:
            files[shard] = os.open(folder / f"{shard}.tar", os.O_RDONLY)
        found = rows._row(number)[0].spans["latents"].member(n, "moments.npy")
        wanted.append((files[shard], found[1], found[0]))
    start = time.perf_counter()
    for one in wanted:
        os.pread(*one)
    taken = time.perf_counter() - start
    for handle in files.values():
        os.close(handle)
    return len(numbers) / taken


def _webdataset(folder: Path, count: int) -> float:
    import webdataset

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    start = time.perf_counter()
    found = sum(1 for _ in itertools.islice(webdataset.WebDataset(tars, shardshuffle=False), count))
    return found / (time.perf_counter() - start)
