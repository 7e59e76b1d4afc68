"""What several workers, sharding and forgotten activations cost and gain, through the stage's own worker.

PARALLEL_STEPS and PARALLEL_PAIRS in the environment make it shorter, to see that it works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.config import DiTConfig, HeunConfig, OptimizationConfig
from pipelines.training.config import FSDPConfig
from tests.benchmarks.results import Result

STEPS = int(os.environ.get("PARALLEL_STEPS", "12"))
"""Timed steps of a training on CPUs."""
PAIRS = int(os.environ.get("PARALLEL_PAIRS", "3"))
SMALL = DiTConfig(width=256, depth=6, heads=4, patch=2)
OPTIMIZATION = OptimizationConfig(lr=1e-4, warmup=0, cooldown=0)


def line(folder: Path, *, side: int, classes: int, count: int) -> dict[str, Any]:
    """The inputs of a train stage: `count` moments of 4 x side x side, and their classes."""
    import torch
    from safetensors.torch import save

    from cluster.storage import Storage
    from diffusion.config import KLAutoencoderConfig
    from pipelines.arrays import to_npy
    from pipelines.dataset import Dataset, describe, write_manifest
    from pipelines.models import SnapshotFolder
    from pipelines.shards import write_shard
    from pipelines.stage import Row, Sample, jsonable

    storage = Storage.at(folder / "autoencoder")
    config = KLAutoencoderConfig(latent_channels=4, channels=8, multipliers=(1,), stem=4, blocks=1)
    torch.manual_seed(0)
    data = save(config.build().half().state_dict())
    storage.put_if_absent("autoencoder.safetensors", data)
    record = {
        "task": "autoencoder",
        "autoencoder": jsonable(config),
        "resolution": 4 * side,
        "files": {"autoencoder.safetensors": hashlib.sha256(data).hexdigest()},
    }
    write_manifest(storage, {"snapshot": record}, kind="snapshot")
    autoencoder = SnapshotFolder.open(storage)

    def dataset(name: str, member: Any, **manifest: Any) -> Dataset:
        place = Storage.at(folder / name)
        rows = [Row(key=f"k{n:06d}") for n in range(count)]
        pairs = [(row, Sample(key=row.key, members=member(n))) for n, row in enumerate(rows)]
        write_manifest(
            place, describe([write_shard(place, "00000", pairs, split="train")], stage="test", **manifest)
        )
        return Dataset.open(place)

    def moments(n: int) -> dict[str, bytes]:
        drawn = np.random.default_rng(n).standard_normal((4, side, side)).astype(np.float16)
        return {"moments.npy": to_npy(np.concatenate([drawn, np.full_like(drawn, 0.1)]))}

    statistics = {
        "latents": {"mean": [0.0] * 4, "std": [1.0] * 4},
        "shape": [4, side, side],
        "resolution": 4 * side,
        "autoencoder": autoencoder.digest(),
    }
    return {
        "autoencoder": autoencoder,
        "latents": dataset("latents", moments, statistics=statistics),
        "images": dataset(
            "images", lambda n: {"cls": str(n % classes).encode()}, classes=list(map(str, range(classes)))
        ),
    }


def stage(network: DiTConfig, *, batch: int, steps: int, **changes: Any) -> Any:
    from pipelines.stages.train import Train

    never = 10**12
    return Train(
        **{
            "latents": "latents",
            "autoencoder": "vae",
            "images": "images",
            "network": network,
            "batch": batch,
            "images_seen": batch * steps,
            "optimization": OPTIMIZATION,
            "sampler": HeunConfig(steps=1),
            "validate_every": never,
            "samples_every": never,
            "checkpoint_seconds": None,
            **changes,
        }
    )


def trained(
    training: Any,
    inputs: dict[str, Any],
    *,
    rank: int = 0,
    world: int = 1,
    accelerated: bool = False,
    folder: Path | None = None,
) -> float:
    """Images a second of a stage's training by `train_worker`, from rank 0's second report to the last."""
    import torch

    from cluster.gang import Member
    from cluster.storage import Storage
    from pipelines.training import loop
    from pipelines.training.job import Job, Training
    from pipelines.training.trainer import train_worker

    loop.REPORT_SECONDS = 0.0 if not accelerated else loop.REPORT_SECONDS
    seen: list[tuple[float, int]] = []

    def event(event: dict[str, Any]) -> None:
        if event["kind"] == "progress":
            seen.append((time.monotonic(), event["done"]))

    names = {field.name for field in dataclasses.fields(Training)} - {"accelerated", "file"}
    shared = {n: getattr(training, n) for n in names if hasattr(training, n)}
    with contextlib.ExitStack() as leaving:
        # All ranks write their parts of a checkpoint into one folder.
        place = Storage.at(folder or Path(leaving.enter_context(tempfile.TemporaryDirectory())))
        job = Job(
            training=Training(**shared, accelerated=accelerated, file="denoiser.safetensors"),
            task=functools.partial(training.task, inputs),
            output=place.folder("output"),
            checkpoints=place.folder("checkpoints"),
            lease=1,
        )
        train_worker(
            {"job": job}, Member(rank=rank, world=world, event=event, threads=torch.get_num_threads())
        )
    if rank:
        return 0.0
    (start, first), (end, last) = seen[min(2, len(seen) - 2)], seen[-1]
    return (last - first) / (end - start)


def _rank(rank: int, world: int, folder: str, work: str, training: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from cluster.storage import Storage
    from pipelines.dataset import Dataset
    from pipelines.models import SnapshotFolder

    torch.set_num_threads(1)
    top = Path(folder)
    inputs: dict[str, Any] = {n: Dataset.open(Storage.at(top / n)) for n in ("latents", "images")}
    inputs["autoencoder"] = SnapshotFolder.open(Storage.at(top / "autoencoder"))
    if world > 1:
        import torch.distributed

        meeting = f"file://{top}/meeting"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    rate = trained(training, inputs, rank=rank, world=world, folder=Path(work))
    if rank == 0:
        (Path(work) / "rate").write_text(json.dumps(rate))


def _gangs(count: int, world: int, folder: Path, training: Any) -> float:
    """Images a second of `count` trainings at once, on `world` processes of one thread each."""
    (folder / "meeting").unlink(missing_ok=True)
    context, works = (
        multiprocessing.get_context("spawn"),
        [tempfile.mkdtemp(dir=folder) for _ in range(count)],
    )
    ranks = [
        context.Process(target=_rank, args=(rank, world, str(folder), work, training))
        for work in works
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise RuntimeError(f"of {len(ranks)} ranks, one or more failed: {[p.exitcode for p in ranks]}")
    return sum(json.loads((Path(work) / "rate").read_text()) for work in works)


def _ratio(name: str, pairs: list[tuple[float, float]], words: tuple[str, str], **more: Any) -> Result:
    ratios = [a / b for a, b in pairs]
    mine, other = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    return Result(
        name=name,
        value=statistics.median(ratios),
        unit="ratio",
        better="higher",
        against=f"{words[1]}: {other:.4g} images/s, {words[0]}: {mine:.4g} images/s",
        n=len(ratios),
        spread=(min(ratios), max(ratios)),
        **{"note": "pairs in turn; smallest and largest ratio", **more},
    )


def bench_two_ranks() -> Iterator[Result]:
    """A DiT of 8 M parameters, 64 tokens, batch 16, gloo: two ranks over one, and FSDP2 over DDP on two; also
    two over two trainings of half the batch that know nothing of each other: what the machine has."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line(folder, side=16, classes=10, count=256)
        ddp = stage(SMALL, batch=16, steps=STEPS)
        fsdp = stage(SMALL, batch=16, steps=STEPS, parallel=FSDPConfig())
        half = stage(SMALL, batch=8, steps=STEPS)
        runs = ((1, 1, ddp), (1, 2, ddp), (2, 1, half), (1, 2, fsdp))
        found = [[_gangs(count, world, folder, each) for count, world, each in runs] for _ in range(PAIRS)]
    note = "one thread a rank, over gloo; the whole worker: stream, EMA, checkpoint at the end"
    yield _ratio(
        "train/two_ranks_over_one",
        [(two, one) for one, two, *_ in found],
        ("two", "one"),
        target=1.7,
        note=note,
    )
    yield _ratio(
        "train/two_ranks_over_two_apart",
        [(two, apart) for _, two, apart, _ in found],
        ("two", "two trainings of half the batch at once"),
        note=note,
    )
    yield _ratio(
        "train/fsdp_over_ddp_two_ranks", [(cut, two) for _, two, _, cut in found], ("FSDP2", "DDP"), note=note
    )


def _alone(recompute: bool, answer: Any, steps: int) -> None:
    """Seconds of a step, and bytes that the process grew by; sent through `answer`."""
    import torch

    from diffusion.conditioning import Conditioning
    from diffusion.recomputation import recompute_blocks

    torch.set_num_threads(1)
    network = DiTConfig(width=256, depth=12, heads=4).build(channels=4, size=16, classes=10)
    if recompute:
        recompute_blocks(network)
    x, t = torch.randn(16, 4, 16, 16), torch.rand(16)
    told = Conditioning(label=torch.arange(16) % 10, classes=10)

    def step() -> None:
        network(x, t, told).square().mean().backward()

    # With gradients and libraries in place; what grows from here on are activations.
    network(x[:1], t[:1], dataclasses.replace(told, label=torch.zeros(1, dtype=torch.long))).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    start = time.monotonic()
    for _ in range(steps):
        step()
    seconds = (time.monotonic() - start) / steps
    answer.put((seconds, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))


def bench_recompute() -> Iterator[Result]:
    """A DiT of 12 blocks, 64 tokens, batch 16 on one core: activations kept, and made again."""
    context = multiprocessing.get_context("spawn")

    def run(recompute: bool) -> tuple[float, float]:
        answer = context.Queue()
        process = context.Process(target=_alone, args=(recompute, answer, max(2, STEPS // 3)))
        process.start()
        found = answer.get(timeout=600)
        process.join()
        return found

    pairs = [(run(True), run(False)) for _ in range(PAIRS)]
    slower = [again[0] / kept[0] for again, kept in pairs]
    smaller = [again[1] / kept[1] for again, kept in pairs]
    (_, bytes_again), (seconds, bytes_kept) = pairs[0]
    yield Result(
        name="train/recompute_time",
        value=statistics.median(slower),
        unit="ratio",
        better="lower",
        target=1.4,
        against=f"a step that keeps its activations: {seconds:.3g} s",
        n=PAIRS,
        spread=(min(slower), max(slower)),
        note="pairs in turn; by arithmetic 4/3",
    )
    yield Result(
        name="train/recompute_memory",
        value=statistics.median(smaller),
        unit="ratio",
        better="lower",
        target=0.4,
        against=f"{bytes_kept / 2**20:.0f} MiB that a step adds to the process, {bytes_again / 2**20:.0f} so",
        n=PAIRS,
        spread=(min(smaller), max(smaller)),
        note="peak resident memory of a process each, above that of a step with one image",
    )
