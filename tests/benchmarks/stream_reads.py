"""How the stream of samples reads, at a thousandth of the size of web datasets."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.results import Result
from tests.benchmarks.stream import BATCH, EACH, PAIRS, RATE, SAMPLES, SIZE, TINY, WORLD, rows_of, shard

SCALE = 1000
"""The dataset on disk is so many times smaller, and stands for what one rank of `WORLD` sees of the whole."""
SPEED = 40
"""Batches by which a reader's speed is told."""
_HEADER = 512
"""Bytes of a tar before each member."""


def dataset(folder: Path, *, samples: int = SAMPLES // SCALE, each: int = EACH) -> Any:
    """Tiny samples of random bytes, written by this project's own shards."""
    from cluster.storage import Storage
    from pipelines.dataset import Dataset, describe, write_manifest

    count = samples // each
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        shards = list(pool.map(shard, [str(folder)] * count, range(count), [each] * count))
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
    """1/1000 of the samples on disk: what the ranks of a node ask a remote store for, and how fast a local
    one is read."""
    with tempfile.TemporaryDirectory() as folder:
        yield from measured(Path(folder), samples=SAMPLES // SCALE, each=EACH)


def measured(folder: Path, *, samples: int, each: int, seen: int = 2) -> Iterator[Result]:
    """Nodes of 8 ranks and of one, of `WORLD` in all, through `seen` windows; then one reader against
    others."""
    given = dataset(folder / "data", samples=samples, each=each)
    rows_of(given)  # so that what is imported does not count
    start = time.perf_counter()
    rows = rows_of(given)
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
    for ranks in (8, 1):
        yield from _remote(folder, given, whole=whole, ranks=ranks)
    yield from _local(folder, rows)


def _local(folder: Path, rows: Any) -> Iterator[Result]:
    numbers = np.concatenate(
        [indices for _, indices in itertools.islice(_stream(rows, rank=0, world=8), SPEED)]
    )
    _speed(rows, numbers)  # what the indices take once is told above
    ours, plain, web = [], [], []
    for _ in range(PAIRS):
        ours.append(_speed(rows, numbers))
        plain.append(_plain(folder / "data", rows, numbers))
        web.append(_webdataset(folder / "data", len(numbers)))
    for name, theirs, what, target in (
        ("plain_pread", plain, "os.pread of the same bytes from known places, digests unchecked", None),
        ("webdataset", web, "webdataset's sequential reader of the tars, digests unchecked", 1.0),
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
    from pipelines import members
    from pipelines.dataset import Dataset
    from pipelines.shard_cache import CacheConfig

    store = _far(folder / "data")
    rows = rows_of(Dataset(store, given.manifest), CacheConfig(folder=str(folder / f"cache{ranks}")))
    cache, seen, wanted = rows.members["latents"].cache, 0, set()
    streams = [iter(_stream(rows, rank=rank)) for rank in range(ranks)]
    least = members.LEAST
    members.LEAST = least * TINY // SIZE  # so that blocks are cut as those of full size are
    try:
        for _ in range(whole):
            for stream in streams:
                _, indices = next(stream)
                for number in indices.tolist():
                    rows.read(number, "latents", "moments.npy")
                    wanted.add(rows.place(number))
                seen += len(indices)
    finally:
        members.LEAST = least
    shards = {shard for shard, _ in wanted}
    parquet = sum((folder / "data" / f"{shard}.parquet").stat().st_size for shard in shards)
    requests, fetched = cache.requests - len(shards), cache.fetched - parquet
    assert store.requests == cache.requests
    used = len(wanted) * (_HEADER + TINY) / fetched
    # At full size a sample's range is as many times longer, and its row in the index is not.
    grown = fetched * (_HEADER + SIZE) / (_HEADER + TINY)
    what = f"{ranks} of {WORLD:,} ranks share a node's cache"
    suffix = "" if ranks > 1 else "_by_a_node_of_one_rank"
    yield Result(
        name=f"train/stream_requests_of_a_rank{suffix}",
        value=requests / seen * RATE,
        unit="requests/s",
        better="lower",
        target=2.0,
        against=f"one of each sample: {RATE:.0f}/s",
        note=f"at {RATE:.0f} images/s a rank; {what}; {seen:,} samples in {requests:,} ranges; indices: "
        f"{len(shards) / seen * RATE:.2f}/s",
    )
    yield Result(
        name=f"train/stream_bytes_used{suffix}",
        value=used,
        unit="share",
        better="higher",
        target=0.8,
        note=f"samples and their tar headers, of the tars' bytes that were read; {what}; what is left, "
        "at the ends of stretches, is another node's; with the shards' indices, at full size, "
        f"{len(wanted) * (_HEADER + SIZE) / (grown + parquet):.2f}",
    )
    yield Result(
        name=f"train/stream_index_bytes{suffix}",
        value=parquet / grown,
        unit="ratio",
        better="lower",
        target=0.25,
        note=f"indices of {parquet / len(shards):,.0f} bytes over ranges as they are at full size "
        f"({grown / requests:,.0f} bytes each); {what}",
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
