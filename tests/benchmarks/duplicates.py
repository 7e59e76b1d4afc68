"""Planted copies found, others left alone, and what a task holds of an index that grows.

These are copies of half 1 of the emoji. The thresholds were chosen while looking at emoji of both halves, so
the figures are not those of unseen pictures.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.results import Result

KINDS = ("resized", "cropped", "recompressed", "mirrored", "recoloured")
TWINS, LEAKS, EXACT = 40, 8, 10
"""Copies of each kind within training, of each kind from the test split, and equal bytes of either."""


def bench_duplicates() -> Iterator[Result]:
    """200 near twins and 50 leaks among 800 emoji, by the stage as a recipe runs it at its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        yield from planted(Path(folder))


def planted(folder: Path) -> Iterator[Result]:
    from pipelines.duplicates.methods import Semantic
    from tests.pipelines.duplicates.copies import COPIES, emoji, png
    from tests.pipelines.stages.test_deduplicate import dataset, rows, run, sample

    originals = [(f"o-{name}", image) for name, image in emoji(1)]
    train, test = originals[: -len(originals) // 5], originals[-len(originals) // 5 :]
    draw = np.random.default_rng(0)
    truth: dict[str, tuple[str, str]] = {}
    copies = []

    def plant(kind: str, of: Sequence[tuple[str, Any]], count: int, label: str) -> None:
        for n in draw.choice(len(of), count, replace=False):
            key, image = of[n]
            name = f"{label}-{kind}-{key}"
            copies.append(sample(name, png(image if kind == "exact" else COPIES[kind](image, draw))))
            truth[name] = (key, kind)

    for kind in KINDS:
        plant(kind, train, TWINS, "twin")
        plant(kind, test, LEAKS, "leak")
    for of, label in ((train, "twin"), (test, "leak")):
        plant("exact", of, EXACT, label)
    shards = {
        "00000": ("train", [sample(key, image) for key, image in train]),
        "00001": ("train", copies),
        "20000": ("test", [sample(key, image) for key, image in test]),
    }
    images = dataset(folder / "images", shards)
    start, busy = time.monotonic(), time.process_time()
    said, found, _ = run(folder, images, Semantic())
    seconds, busy = time.monotonic() - start, time.process_time() - busy
    made = rows(found)

    def joined(key: str, other: str) -> bool:
        return made[key]["cluster"] == made[other]["cluster"]

    def recall(keys: Sequence[str]) -> float:
        return sum(joined(key, truth[key][0]) for key in keys) / len(keys)

    exact = [key for key, (_, kind) in truth.items() if kind == "exact"]
    twins = [key for key in truth if key.startswith("twin") and key not in exact]
    leaks = [key for key in truth if key.startswith("leak")]
    by_kind = {
        kind: recall([key for key in truth if truth[key][1] == kind and key.startswith("twin")])
        for kind in KINDS
    }
    told = ", ".join(f"{kind} {value:.1%}" for kind, value in by_kind.items())
    yield Result(
        name="data/dedup_exact_recall", value=recall(exact), unit="of copies", target=1.0, better="higher",
        n=len(exact), note="equal bytes, half of them over splits",
    )  # fmt: skip
    yield Result(
        name="data/dedup_near_recall", value=recall(twins), unit="of copies", target=0.98, better="higher",
        n=len(twins), note=f"planted in training: {told}", extra=by_kind,
    )  # fmt: skip
    yield Result(
        name="data/dedup_leaks_removed", value=sum(not made[key]["keep"] for key in leaks) / len(leaks),
        unit="of leaks", target=0.98, better="higher", n=len(leaks),
        note=f"copies in training of test images; test images dropped for training: "
        f"{sum(not made[key]['keep'] for key, _ in test if made[key]['twin'].startswith('twin'))}",
    )  # fmt: skip

    # pairs of distinct originals that end in one cluster; equal pixels are no two originals
    pixels = {key: image.tobytes() for key, image in originals}
    clusters: dict[str, list[str]] = {}
    for key in pixels:
        clusters.setdefault(made[key]["cluster"], []).append(key)
    merged = [(a, b) for keys in clusters.values() for a in keys for b in keys if a < b]
    equal = [pair for pair in merged if pixels[pair[0]] == pixels[pair[1]]]
    false = [pair for pair in merged if pair not in equal]
    possible = len(originals) * (len(originals) - 1) // 2
    yield Result(
        name="data/dedup_false_merges", value=len(false) / possible, unit="of pairs", target=0.005,
        better="lower", n=possible,
        note=f"{len(false)} pairs of distinct originals in one cluster ({len(equal)} of equal pixels are not "
        f"counted): {', '.join('/'.join(k[2:] for k in pair) for pair in false[:8])}",
    )  # fmt: skip
    lost = {key for pair in false for key in pair if not made[key]["keep"]}
    yield Result(
        name="data/dedup_originals_lost", value=len(lost) / len(originals), unit="of originals",
        better="lower", n=len(originals), note="distinct originals that fall for another, or for its copy",
    )  # fmt: skip
    count = sum(len(samples) for _, samples in shards.values())
    yield Result(
        name="data/dedup_seconds", value=seconds / count * 1000, unit="s / 1,000", better="lower", n=count,
        note=f"{busy / count * 1000:.0f} s of CPU; semantic, one process, 256 px PNG: decoding, features, "
        "candidates, verification, writing",
        extra={"statistics": said["statistics"]},
    )  # fmt: skip


WIDTH, PARTITION, COSINE, PROBES = 64, 5_000, 0.85, 8


def bench_duplicates_memory() -> Iterator[Result]:
    """What one search task takes, and what partitions miss, as the index grows fourfold."""
    taken, recall, slowest = {}, 0.0, 0.0
    for count in (50_000, 200_000):
        with tempfile.TemporaryDirectory() as folder:
            pieces, recall = searched(Path(folder), count)
            step = max(1, len(pieces) // 4)
            context = multiprocessing.get_context("spawn")
            with context.Pool(1, maxtasksperchild=1) as pool:
                peaks = [pool.apply(one_task, (folder, piece)) for piece in pieces[::step]]
            taken[count] = max(peak for peak, _ in peaks)
            slowest = max(seconds for _, seconds in peaks)
    small, large = taken[50_000], taken[200_000]
    yield Result(
        name="data/dedup_task_memory", value=large / small, unit="x", target=1.3, better="lower",
        against=f"the largest of four tasks at 50,000 vectors: {small / 2**20:.0f} MiB", n=2,
        note=f"peak over an idle worker: {large / 2**20:.0f} MiB at 200,000 vectors of {WIDTH}, partitions "
        f"of {PARTITION:,}, at most {slowest:.1f} s a task",
    )  # fmt: skip
    yield Result(
        name="data/dedup_index_recall", value=recall, unit="of pairs", target=0.999, better="higher",
        against="comparing 4,000 of 200,000 vectors with all", n=4000,
        note=f"pairs from a cosine of {COSINE:g}; {PROBES} probes of 40 partitions",
    )  # fmt: skip


def searched(folder: Path, count: int) -> tuple[list[tuple[int, int, int]], float]:
    """Runs all passes; the pieces searched, and the share of the pairs of 4,000 rows that was found."""
    from cluster.storage import Storage
    from pipelines.duplicates import partitions

    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(500, WIDTH))[draw.integers(0, 500, count)] + draw.normal(size=(count, WIDTH))
    twins = count // 20
    noise = draw.uniform(0.1, 0.5, (twins, 1)) * draw.normal(size=(twins, WIDTH)) * 2**0.5
    vectors[-twins:] = vectors[:twins] + noise
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    work, parts = Storage.at(folder), [f"{n:05d}" for n in range(count // 10_000)]
    for part, piece in zip(parts, np.split(vectors, len(parts)), strict=True):
        partitions.write_features(work, part, range(len(piece)), piece)
    pieces: list[Any] = []

    def here(factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
        pieces[:] = list(items)
        return map(factory(), pieces)

    pairs = partitions.find_semantic(here, work, parts, method(), {})
    numbers = pairs["part"].astype(np.int64) * 10_000 + pairs["row"]
    found = {(int(a), int(b)) for a, b in numbers}
    whole = vectors.astype(np.float32)
    asked = np.arange(count - twins, count - twins + min(4000, twins))
    near = np.argwhere(whole[asked] @ whole.T >= COSINE)
    wanted = {
        tuple(sorted((int(asked[a]), int(b)))) for a, b in near if int(asked[a]) != int(b)
    }  # fmt: skip
    return pieces, len(wanted & found) / len(wanted)


def method() -> Any:
    from pipelines.duplicates.methods import Semantic

    return Semantic(cosine=COSINE, verify=None, partition=PARTITION, probes=PROBES)


def one_task(folder: str, piece: tuple[int, int, int]) -> tuple[int, float]:
    """Bytes that a search task adds to the peak of a worker that is ready, and its seconds."""
    from cluster.storage import Storage
    from pipelines.duplicates.partitions import SearchPass
    from pipelines.duplicates.semantic import Homes

    work = Storage.at(folder)
    parts = tuple(name.removeprefix("features/").removesuffix(".npy") for name in work.list("features/"))
    warm = Homes(WIDTH, [np.eye(WIDTH, dtype=np.float32)])
    list(warm.near(np.eye(WIDTH, dtype=np.float32), cosine=0.5, count=1))
    before = peak()
    start = time.monotonic()
    SearchPass(work, parts, method(), 99, None)()(piece)
    seconds = time.monotonic() - start
    return peak() - before, seconds


def peak() -> int:
    """Bytes that this process has held at most; what `getrusage` says is its parent's, if that had more."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
