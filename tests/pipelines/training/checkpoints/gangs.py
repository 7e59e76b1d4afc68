"""Ranks for the tests: several writers in one process, and processes that talk over gloo."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from cluster.storage import Storage
from pipelines.training.checkpoints import Mark, Writer
from pipelines.training.checkpoints.writing import new_attempt


def mark(images_seen: int, *, lease: int = 1, cooling: bool = False, target: int = 100) -> Mark:
    return Mark(images_seen=images_seen, lease=lease, cooling=cooling, target=target)


def everything(mark: Mark) -> bool:
    return True


def tensors(value: float) -> dict[str, torch.Tensor]:
    """All that depends on `value`, in several kinds of number and shapes, one of them empty."""
    return {
        "module.w": torch.arange(12.0).reshape(3, 4) + value,
        "module.conv": torch.full((2, 3, 4, 5), value).to(memory_format=torch.channels_last),
        "module.bf": torch.tensor([value], dtype=torch.bfloat16),
        "module.flag": torch.tensor([True, False]),
        "module.nothing": torch.zeros(0, 3),
        "images_seen": torch.tensor(int(value)),
    }


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def writers(storage: Storage, world: int, **options: Any) -> list[Writer]:
    """Ranks of one attempt, in this process."""
    attempt = new_attempt()
    return [Writer(storage, rank=r, world=world, attempt=attempt, **options) for r in range(world)]


def written(ranks: list[Writer], at: Mark, done: Callable[[], None] = lambda: None) -> None:
    """A checkpoint of `tensors` of its place, as far as the ranks come with it."""
    for rank in reversed(ranks):
        rank.write(at, tensors(at.images_seen), {"at": at.images_seen}, done=done)
    while any(rank.busy for rank in ranks):
        time.sleep(0.001)


def gangs(folder: Path, *works: tuple[int, Callable[[int], None]]) -> None:
    """For each (world, work) in turn `work(rank)` in processes that are one process group; those of one gang
    go on to the next, which begins when all are done."""
    context = multiprocessing.get_context("fork")
    meetings = [folder / f"meeting-{os.urandom(4).hex()}" for _ in works]
    gates = [context.Barrier(max(world for world, _ in works)) for _ in works]

    def enter(rank: int) -> None:
        torch.set_num_threads(1)
        for (world, work), meeting, gate in zip(works, meetings, gates, strict=True):
            gate.wait(120)
            if rank >= world:
                continue
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
            )
            work(rank)
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    ranks = max(world for world, _ in works)
    processes = [context.Process(target=enter, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks
