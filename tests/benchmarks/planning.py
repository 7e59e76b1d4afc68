"""What a very large dataset costs before any worker has work: seconds and peak memory of the driver."""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Result

SHARDS, EACH = 100_000, 1000
"""Of a dataset that a stage is planned behind."""
INPUTS, SMALL = 1_000_000, 10
"""Of a source that is arranged, and samples a shard."""


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Calls it in a new process; with `peak`, the most memory in MB that it had."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, arguments).result()


def _with_peak(function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    found = function(*arguments)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {**found, "peak": int(status["VmHWM"].split()[0]) / 1024}


def digest(*words: object) -> str:
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()


def made_dataset(folder: Path) -> None:
    """A manifest of 100,000 shards, 100 million images; of the shards themselves there is none."""
    from cluster.storage import Storage
    from pipelines.dataset import describe, write_manifest
    from pipelines.shards import ShardInfo

    infos = []
    for n in range(SHARDS):
        split = "train" if n < 0.9 * SHARDS else "validation" if n < 0.95 * SHARDS else "test"
        columns = {
            name: {"count": EACH, "bytes": EACH * size, "digest": digest(n, name)}
            for name, size in (("cls", 3), ("image", 50_000), ("json", 300), ("webp", 50_000))
        }
        infos.append(
            ShardInfo(
                name=f"{n:06d}", split=split, samples=EACH, rejected=2, bytes=51_000 * EACH,
                sha256=digest(n), reasons={"truncated": 2}, columns=columns, index=digest(n, "index"),
            )
        )  # fmt: skip
    write_manifest(Storage.at(folder), describe(infos, stage="ingest", classes=["a", "b"]))


def planned(images: str, store: str) -> dict[str, Any]:
    """As a run does before its first worker: the stage's fingerprint, and all of its shards."""
    from cluster.storage import Storage
    from pipelines.runner.plan import plan
    from pipelines.stages.score import Score
    from tests.pipelines.toys import ToyRecipe

    start = time.monotonic()
    recipe = ToyRecipe({"scores": Score(images=images)})
    stage = plan(recipe, Storage.at(store))["scores"]
    known = time.monotonic() - start
    shards = stage.stage.plan(stage.open())  # pyright: ignore[reportAttributeAccessIssue]
    assert (stage.state, len(shards)) == ("run", SHARDS)
    return {"known": known, "seconds": time.monotonic() - start}


def made_survey(folder: Path) -> dict[str, Any]:
    """A million inputs as the survey leaves them, by its own writer: a tenth are near-copies of another."""
    import numpy as np

    from cluster.storage import Storage
    from pipelines.sources import entries
    from pipelines.sources.sightings import unit

    draw = np.random.Generator(np.random.Philox(key=0))
    hashes = draw.integers(0, 1 << 63, INPUTS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    copies = np.flatnonzero(draw.random(INPUTS) < 0.1)
    hashes[copies] = hashes[draw.integers(0, INPUTS, len(copies))] ^ np.uint64(1 << 20)
    mirrored = draw.integers(0, 1 << 63, INPUTS, dtype=np.uint64)
    labels = [f"class {n}" for n in range(100)]
    keys = sorted((unit(f"{n:07d}"), n) for n in range(INPUTS))
    storage, files, last = Storage.at(folder), [], 0
    counts = dict.fromkeys(labels, 0)
    for part in entries.ranges(INPUTS, "inputs/made"):
        rows = []
        while last < len(keys) and keys[last][0] < part.high:
            place, n = keys[last]
            last += 1
            key, label = f"{n:07d}", labels[n % 100]
            counts[label] += 1
            rows.append({
                "place": place, "key": key,
                "name": f"{label}/{key}.jpg".encode(), "where": f'"{label}/{key}.jpg"', "digest": digest(n),
                "size": 100_000, "kind": "jpg", "width": 640, "height": 480,
                "reject": None, "fault": "truncated" if n % 500 == 0 else None,
                "facts": f'{{"label":"{label}","text":"picture {n}"}}', "split": None, "label": label,
                "text": True, "hash": int(hashes[n]), "mirrored": int(mirrored[n]),
            })  # fmt: skip
        storage.put_if_absent(part.name, entries._parquet(rows, 0))
        files.append(part.name)
    return {"files": files, "labels": counts}


def arranged(folder: str, said: dict[str, Any]) -> dict[str, Any]:
    """As the driver of an ingest does once the survey is there: splits, shards, and the plan of a dry run."""
    from cluster.storage import Storage
    from pipelines.sources import FolderSource
    from pipelines.sources.survey import Survey
    from pipelines.stages.ingest import Ingest

    survey = Survey(
        place=Storage.at(folder), name="made", files=tuple(said["files"]), digest="", count=INPUTS,
        bytes=100_000 * INPUTS, ignored=0, captioned=INPUTS, labels=said["labels"],
    )  # fmt: skip
    stage = Ingest(source=FolderSource(path=Path(folder)), samples_per_shard=SMALL)
    object.__setattr__(stage, "_survey", survey)
    start = time.monotonic()
    found = stage.arrangement
    decided = time.monotonic() - start
    shards = stage.plan({})
    seconds = time.monotonic() - start
    assert sum(shard.count for shard in shards) == INPUTS
    first = time.monotonic()
    rows = stage.rows({}, shards[0])
    assert len(rows) == shards[0].count
    return {
        "decided": decided,
        "seconds": seconds,
        "shards": len(shards),
        "rows": time.monotonic() - first,
        "clusters": found.statistics["duplicates"]["clusters"],
    }


def bench_planning() -> Iterator[Result]:
    """A stage behind 100,000 shards, and a million inputs arranged into about as many."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        apart(_made, made_dataset, images)
        found = apart(planned, str(images), f"{folder}/store")
        size = (images / "manifest.json").stat().st_size / 1e6
    yield from _told("data/planning_100k_shards", found, f"manifest: {size:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        said = apart(_made, made_survey, Path(folder))
        found = apart(arranged, folder, {name: said[name] for name in ("files", "labels")})
    yield from _told(
        "data/arranging_1m_inputs",
        found,
        f"{found['shards']:,} shards; rows of one, in a worker: {found['rows'] * 1e3:.0f} ms",
    )


def _made(function: Callable[[Path], Any], folder: Path) -> dict[str, Any]:
    return function(folder) or {}


def _told(name: str, found: dict[str, Any], against: str) -> Iterator[Result]:
    extra = {key: value for key, value in found.items() if key not in ("seconds", "peak")}
    yield Result(name=name, value=found["seconds"], unit="s", better="lower", against=against, extra=extra)
    yield Result(
        name=f"{name}_memory",
        value=found["peak"],
        unit="MB",
        better="lower",
        against="peak of the driver, the interpreter and its libraries included",
    )
