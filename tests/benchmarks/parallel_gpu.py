"""What the stage's own worker makes of a GPU, without Ray, beside a bare loop with data in memory."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion.config import DiTConfig
from pipelines.training.config import FSDPConfig
from tests.benchmarks.parallel import line, stage, trained
from tests.benchmarks.results import Result

GPU_NETWORKS = (("B/2", 256), ("XL/2", 128))
"""With the batch of one GPU."""
GPU_SECONDS = 20.0
"""Of one timed training, about."""


def bench_parallel_gpu() -> Iterator[Result]:
    """B/2 and XL/2 at 256 px (latents of 4 x 32 x 32) through `train_worker` without Ray: bf16, compiled."""
    import torch

    if not torch.cuda.is_available():
        print("  parallel_gpu: this machine has none, nothing is measured", flush=True)
        return
    for name, batch in GPU_NETWORKS:
        config = dataclasses.replace(DiTConfig.named(name), norm="rms")
        yield from on_one(
            name, config, batch=batch, side=32, classes=1000, seconds=GPU_SECONDS, accelerated=True
        )


def on_one(
    name: str, config: DiTConfig, *, batch: int, side: int, classes: int, seconds: float, accelerated: bool
) -> Iterator[Result]:
    """The same of any network and device: the bare loop, then the worker on one replica, sharded, and with
    activations made again."""
    import torch

    from diffusion.networks.flops import flops

    work = 3 * flops(config, channels=4, size=side, classes=classes)
    said = {"precision": "bfloat16" if accelerated else "float32", "compile": accelerated}
    with tempfile.TemporaryDirectory() as folder:
        inputs = line(Path(folder), side=side, classes=classes, count=8 * batch)
        bare, peak = bare_loop(
            stage(config, batch=batch, steps=1, **said), inputs, seconds=seconds, accelerated=accelerated
        )
        steps = max(4, round(seconds * bare / batch))
        kinds: dict[str, dict[str, Any]] = {
            "": {},
            "_fsdp": {"parallel": FSDPConfig()},
            "_recompute": {"recompute": True},
        }
        rates: dict[str, float] = {}
        for kind, changes in kinds.items():
            if accelerated:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            training = stage(config, batch=batch, steps=steps, **said, **changes)
            rates[kind] = trained(training, inputs, accelerated=accelerated)
            memory = torch.cuda.max_memory_allocated() / 2**30 if accelerated else 0.0
            beside, rate = ("bare loop", bare) if not kind else ("DDP", rates[""])
            yield Result(
                name=f"train/gpu{kind}_{name}",
                value=rates[kind] / rate,
                unit="ratio",
                better="higher",
                target={"": 0.98, "_fsdp": 0.9}.get(kind),
                against=f"{beside}: {rate:.5g} images/s; {rates[kind]:.5g} images/s, "
                f"{work * rates[kind] / 1e12:.1f} TFLOP/s, {memory:.1f} GiB",
                note=f"{said['precision']}, batch {batch}, {steps} steps; without Ray"
                + (f"; bare loop {peak:.1f} GiB" if not kind else ""),
                extra={"images_per_second": rates[kind], "peak_gib": memory},
            )


def bare_loop(
    training: Any, inputs: dict[str, Any], *, seconds: float, accelerated: bool
) -> tuple[float, float]:
    """Images a second of `fit` on batches that lie on the device, and GiB of its peak there."""
    import torch

    from diffusion.compilation import compile_blocks
    from diffusion.training import TrainingState, fit
    from pipelines.stream import TrainingStream

    device = torch.device("cuda" if accelerated else "cpu")
    torch.manual_seed(0)
    task = training.task(inputs, device, 1)
    if accelerated:
        torch.set_float32_matmul_precision("high")
        torch.cuda.reset_peak_memory_stats()
        compile_blocks(task.module)
    stream = TrainingStream(task.length, seed=0, batch=training.batch)
    batches = [task.share(*place).to(device) for place in itertools.islice(stream, 8)]
    state = TrainingState.start(task.module, training.optimization)

    def steps(count: int) -> float:
        start = time.monotonic()
        for _ in fit(
            state,
            itertools.cycle(batches),
            lambda share: task.losses(task.module, share),
            optimization=training.optimization,
            batch=training.batch,
            target_images=state.images_seen + count * training.batch,
            autocast=torch.bfloat16 if training.precision == "bfloat16" else None,
        ):
            pass
        if accelerated:
            torch.cuda.synchronize()
        return (time.monotonic() - start) / count

    steps(3)  # compiles
    count = max(2, round(seconds / steps(3) / 3))
    rate = statistics.median(training.batch / steps(count) for _ in range(3))
    return rate, torch.cuda.max_memory_allocated() / 2**30 if accelerated else 0.0
