"""What a checkpoint costs a training, and how fast it is written and read again.

A DiT of about 100 M parameters with AdamW and an average in fp32: 1.6 GB, which one rank writes; on a GPU
where there is one. The share is that of the cadence that trainings have by default.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Result

WIDTH, DEPTH, HEADS = 672, 12, 12
"""About 100 M parameters."""
CADENCE = 60.0
"""Seconds between two checkpoints, as a stage has it by default."""
TIMES = 5


def state() -> Any:
    """A training that has taken a step."""
    import torch

    from diffusion.config import DiTConfig, OptimizationConfig
    from diffusion.training import TrainingState

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = DiTConfig(width=WIDTH, depth=DEPTH, heads=HEADS, patch=2).build(
        channels=4, size=32, classes=1000
    )
    started = TrainingState.start(module.to(device), OptimizationConfig())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in started.optimizers:
        optimizer.step()
    module.zero_grad(set_to_none=True)
    return started


def bench_checkpoint_cost() -> Iterator[Result]:
    """Stall, writing, restoring: one rank, a local disk."""
    import torch

    from cluster.storage import Storage
    from pipelines.training import checkpoints
    from pipelines.training.checkpoints import Mark

    training = state()
    tensors = training.state_dict()
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    parameters = sum(p.numel() for p in training.module.parameters())
    of = f"{parameters / 1e6:.0f} M parameters, {size / 1e9:.2f} GB"
    waits = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        storage = Storage.at(Path(folder))
        writer = checkpoints.Writer(storage)
        stalls, copies, writes = [], [], []
        for number in range(1, TIMES + 2):
            waits()
            mark = Mark(images_seen=number, lease=1, cooling=False, target=100)
            start = time.monotonic()
            writer.write(mark, training.state_dict(), {"curve": []})
            stalls.append(time.monotonic() - start)
            waits()  # where the copies are queued, the next step waits for them
            copies.append(time.monotonic() - start)
            writer.wait()
            writes.append(size / (time.monotonic() - start))
        yield Result(
            name="train/checkpoint_stall_of_interval",
            value=statistics.median(copies[1:]) / CADENCE,
            unit="share",
            target=0.02,
            better="lower",
            against=f"an interval of {CADENCE:g} s; {of}",
            n=TIMES,
            spread=(min(copies[1:]) / CADENCE, max(copies[1:]) / CADENCE),
            note="copy to host memory, all that a step waits for",
            extra={
                "seconds": copies,
                "host_seconds": stalls,
                "first": copies[0] / CADENCE,
                "bytes": size,
            },
        )
        yield Result(
            name="train/checkpoint_write",
            value=statistics.median(writes[1:]) / 1e6,
            unit="MB/s",
            better="higher",
            against=of,
            n=TIMES,
            spread=(min(writes[1:]) / 1e6, max(writes[1:]) / 1e6),
            note="sha256, fsync and commit, in a thread beside the training",
        )
        reads = []
        for _ in range(3):
            start = time.monotonic()
            found = checkpoints.newest(storage, lambda mark: True)
            assert found is not None
            training.load_state_dict(found.tensors)
            waits()
            reads.append(time.monotonic() - start)
        yield Result(
            name="train/checkpoint_restore",
            value=statistics.median(reads),
            unit="s",
            better="lower",
            against=of,
            n=len(reads),
            spread=(min(reads), max(reads)),
            note="found, read with every byte checked, loaded; the file in the page cache",
            extra={"MB/s": size / statistics.median(reads) / 1e6},
        )
