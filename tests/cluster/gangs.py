"""A training for gangs that lose workers: it counts, and writes down which samples each step saw."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.gang import GangPaused, Member

SAMPLES, BATCH = 97, 6


def count(config: Mapping[str, Any], member: Member) -> dict[str, Any]:
    """Steps over one global order of samples, with a checkpoint after every `every` steps.

    `config`: folder, steps, every, pause (seconds a step), and what goes wrong: `die` ({step: rank}, once
    each), `stop` and `leave` (the same, by SIGSTOP and SIGTERM), `poison` (a step at which rank 0 always
    dies).
    """
    import torch
    import torch.distributed

    from pipelines.stream import TrainingStream

    folder = Path(config["folder"])
    at = folder / "checkpoint.json"
    start = json.loads(at.read_text())["step"] if at.exists() else 0
    (folder / f"attempt-{member.attempt:03d}-{member.rank}").write_text(f"{os.getpid()} {member.world}")
    stream = iter(
        TrainingStream(
            SAMPLES, seed=3, batch=BATCH, rank=member.rank, world=member.world, images_seen=start * BATCH
        )
    )
    for step in range(start, config["steps"]):
        wrong(config, folder, step, member)
        begun = time.perf_counter()
        _, share = next(stream)
        time.sleep(config.get("pause", 0.05) * config.get("slow", {}).get(member.rank, 1))
        busy = time.perf_counter() - begun
        seen = torch.zeros(BATCH, dtype=torch.int64)
        for place, sample in enumerate(share):
            seen[member.rank + place * member.world] = int(sample)
        told = torch.tensor([int(member.stopping())])
        if member.world > 1:
            torch.distributed.all_reduce(seen)
            torch.distributed.all_reduce(told)
        member.beat((step + 1) * BATCH, busy)
        if member.rank == 0:
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": step, "seen": seen.tolist(), "world": member.world}) + "\n")
            member.event({"kind": "progress", "done": step + 1, "total": config["steps"], "unit": "steps"})
        stop = bool(told) and step + 1 < config["steps"]
        if (stop or (step + 1) % config.get("every", 5) == 0) and member.rank == 0:
            at.with_suffix(".new").write_text(json.dumps({"step": step + 1}))
            at.with_suffix(".new").replace(at)
        if stop:
            raise GangPaused(f"Stopped at {step + 1} steps, which are safe: run again to go on.")
    return {"steps": config["steps"], "world": member.world, "attempt": member.attempt}


def wrong(config: Mapping[str, Any], folder: Path, step: int, member: Member) -> None:
    if config.get("poison") == step and member.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.get("mistake") == step:
        raise ValueError("the images are too small")
    for what, number in (("die", signal.SIGKILL), ("stop", signal.SIGSTOP), ("leave", signal.SIGTERM)):
        done = folder / f"{what}-{step}"
        if config.get(what, {}).get(step) == member.rank and not done.exists():
            done.write_text(str(os.getpid()))
            os.kill(os.getpid(), number)


def order(steps: int) -> list[list[int]]:
    """What the steps of an unbroken training see."""
    from pipelines.stream import TrainingStream

    stream = iter(TrainingStream(SAMPLES, seed=3, batch=BATCH, rank=0, world=1, images_seen=0))
    return [[int(sample) for sample in next(stream)[1]] for _ in range(steps)]


def check(folder: Path, steps: int) -> list[int]:
    """Every step was done, and saw what it should whenever it was; the numbers of workers, in turn."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    right = order(steps)
    assert {line["step"] for line in lines} == set(range(steps))
    assert all(line["seen"] == right[line["step"]] for line in lines)
    worlds = [line["world"] for line in lines]
    return [world for place, world in enumerate(worlds) if place == 0 or worlds[place - 1] != world]


def replaced(config: Mapping[str, Any], member: Member) -> dict[str, Any]:
    """Dies once processes wait that could take its place; the next attempt says which did.

    `config`: folder.
    """
    import psutil

    from cluster import spare

    at = Path(config["folder"]) / "waiting.json"
    if at.exists():
        return {"waited": json.loads(at.read_text()), "taken": os.getpid()}
    step, end = 0, time.monotonic() + 300
    while time.monotonic() < end:
        step += 1
        member.beat(step)
        time.sleep(0.1)
        raylet = psutil.Process().parent()
        assert raylet is not None
        waiting = [
            process.pid
            for process in raylet.children()
            if process.pid != os.getpid()
            and "ray::IDLE" in " ".join(process.cmdline())
            and spare.MODULES in process.environ()
        ]
        if waiting:
            at.write_text(json.dumps(waiting))
            os.kill(os.getpid(), signal.SIGKILL)
    return {}
