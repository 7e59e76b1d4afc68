"""What the stages cost over the bare arithmetic in them: pairs measured in turn, A B A B, in one process."""

from __future__ import annotations

import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Result

STEPS = 120
"""Optimizer steps of one timed training."""
PAIRS = 3
FLAGS = (
    "--autoencoder.images-seen",
    "1600",
    "--autoencoder.optimization.cooldown",
    "0",
    "--autoencoder.optimization.warmup",
    "0",
)
"""An autoencoder that has hardly learned costs what any other does."""


@functools.cache
def line() -> Any:
    """The quickstart's plan with its inputs made once, in a store that goes with the process."""
    from cluster.storage import Storage
    from pipelines import config
    from pipelines.pipeline import plan, run

    folder = tempfile.TemporaryDirectory()
    line.folder = folder  # type: ignore[attr-defined]  # kept as long as the process
    recipe, store = config.load("quickstart", list(FLAGS)), Storage.at(Path(folder.name))
    for stage in ("latents", "text"):
        run(recipe, store, executor="inline", until=stage, record=False)
    return plan(recipe, store)


def interleaved(a: Callable[[], float], b: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Rates of both, in turn: what else the machine does hits both alike."""
    a()
    b()
    pairs = [(a(), b()) for _ in range(PAIRS)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def ratio(name: str, unit: str, target: float, stage: list[float], bare: list[float]) -> Result:
    ratios = [x / y for x, y in zip(stage, bare, strict=True)]
    return Result(
        name=name,
        value=statistics.median(ratios),
        unit="ratio",
        target=target,
        better="higher",
        against=f"bare: {statistics.median(bare):.3g} {unit}, stage: {statistics.median(stage):.3g} {unit}",
        n=PAIRS,
        spread=(min(ratios), max(ratios)),
        note="pairs in turn; smallest and largest ratio",
    )


def bench_training() -> Iterator[Result]:
    """Steps/s of the whole `train` stage's worker over `fit` on batches that lie ready in memory."""
    import torch

    from cluster.gang import Member
    from cluster.storage import Storage
    from diffusion.training import TrainingState, fit
    from pipelines.stream import TrainingStream
    from pipelines.training.job import Job, Training
    from pipelines.training.trainer import train_worker

    torch.set_num_threads(torch.get_num_threads())
    planned = line()["model"]
    stage, inputs = planned.stage, planned.open()
    target = STEPS * stage.batch
    task = stage.task(inputs, torch.device("cpu"), 1)
    stream = TrainingStream(task.length, seed=stage.seed, batch=stage.batch)
    batches = [task.share(positions, indices) for positions, indices in itertools.islice(stream, 16)]
    # 120 steps are too few for twenty looks: they come at the intervals of a run of the recipe's length.
    looks = max(1, stage.images_seen // 20)

    def whole() -> float:
        with tempfile.TemporaryDirectory() as folder:
            place = Storage.at(Path(folder))
            training = Training(
                batch=stage.batch,
                images_seen=target,
                optimization=stage.optimization,
                seed=stage.seed,
                precision="float32",
                accelerated=False,
                file="denoiser.safetensors",
                validate_every=looks,
                samples_every=max(1, stage.images_seen // 8),
                checkpoint_every=None,
                checkpoint_seconds=60.0,
            )
            seen: list[tuple[float, int]] = []

            def event(event: dict[str, Any]) -> None:
                if event["kind"] == "progress":
                    seen.append((time.monotonic(), event["done"]))

            job = Job(
                training=training,
                task=functools.partial(stage.task, inputs),
                output=place.folder("output"),
                checkpoints=place.folder("checkpoints"),
                lease=1,
            )
            train_worker({"job": job}, Member(rank=0, world=1, event=event, threads=torch.get_num_threads()))
            (start, first), (end, last) = seen[0], seen[-1]
            return (last - first) / stage.batch / (end - start)

    def bare() -> float:
        state = TrainingState.start(task.module, stage.optimization)
        start = time.monotonic()
        for _ in fit(
            state,
            itertools.cycle(batches),
            lambda share: task.losses(task.module, share),
            optimization=stage.optimization,
            batch=stage.batch,
            target_images=target,
        ):
            pass
        return STEPS / (time.monotonic() - start)

    yield ratio("line/training_over_bare_loop", "steps/s", 0.95, *interleaved(whole, bare))
