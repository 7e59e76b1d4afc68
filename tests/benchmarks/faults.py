"""A training in which faults come as on large clusters: what they cost, by the training's own account.

FAULT_MINUTES in the environment makes it shorter than 20 minutes for each rate of faults, and FAULT_SECONDS
the interval between checkpoints shorter than 15 s.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.training.account import CATEGORIES, Tally, totals
from tests.benchmarks.results import Result
from tests.benchmarks.training import Trained, end, stepped

SECONDS = 60 * float(os.environ.get("FAULT_MINUTES", "20"))
INTERVAL = float(os.environ.get("FAULT_SECONDS", "15"))
WORKERS = int(os.environ.get("FAULT_WORKERS", "1"))
EXECUTOR = os.environ.get("FAULT_EXECUTOR", "ray")
KINDS = ("driver told to end", "driver killed", "worker killed", "worker stopped")[
    : 4 if EXECUTOR == "ray" else 2
]
QUICK = {"LATENTMILL_HANG_SILENT": "10", "LATENTMILL_HANG_FLOOR": "20", "LATENTMILL_HANG_SLOW": "60"}
"""After how many seconds a worker that does not answer is taken for hung: steps here take less than one."""


@dataclass
class Supervised:
    """A command that somebody starts again whenever it ends, as a cluster's job controller does."""

    trained: Trained
    process: Any = None
    faults: list[tuple[float, str]] = field(default_factory=list)
    """When, by the wall clock, and which."""

    def __enter__(self) -> Supervised:
        self.process = self.trained.begin(EXECUTOR, **QUICK)
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)

    def look(self) -> None:
        if self.process.poll() is not None:
            self.process = self.trained.begin(EXECUTOR, **QUICK)

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look()
            time.sleep(0.2)

    def workers(self) -> list[Any]:
        """Processes that train."""
        import psutil

        found = []
        for process in _children(self.process.pid):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def training(self) -> bool:
        """Whether the newest attempt has gone further than it began."""
        attempts = self.trained.attempts()
        newest = attempts[-1] if attempts else None
        return newest is not None and newest.begun is not None and newest.images_seen > newest.begun

    def strike(self, kind: str, chance: random.Random) -> None:
        """As soon as there is somebody to strike."""
        workers = self.workers()
        while not workers and kind.startswith("worker"):
            self.wait(0.5)
            workers = self.workers()
        self.look()
        self.faults.append((time.time(), kind))
        if kind == "worker killed":
            chance.choice(workers).kill()
        elif kind == "worker stopped":
            chance.choice(workers).suspend()
        else:
            told = signal.SIGTERM if kind == "driver told to end" else signal.SIGKILL
            os.kill(self.process.pid, told)


def _children(pid: int) -> list[Any]:
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def schedule(mean: float, seconds: float, seed: int) -> list[tuple[float, str]]:
    """Seconds from one fault to the next, at random with that mean, and kinds in turn from a random one on:
    every kind comes as often."""
    chance, found, at = random.Random(seed), [], 0.0
    first = chance.randrange(len(KINDS))
    while True:
        gap = chance.expovariate(1 / mean)
        at += gap
        if at > seconds:
            return found
        found.append((gap, KINDS[(first + len(found)) % len(KINDS)]))


@dataclass(frozen=True)
class Outage:
    """From a fault to the end of the first new step."""

    kind: str
    """Of the fault; of several, one after the other, where others hit the restart."""
    seconds: float


def outages(faults: Sequence[tuple[float, str]], attempts: Sequence[Tally]) -> list[Outage]:
    """In their order. A fault that hits a restart makes that outage longer, and is none of its own."""
    ends = sorted(stepped(tally) for tally in attempts if "step" in tally.seconds)
    found: dict[float, tuple[float, list[str]]] = {}
    for at, kind in faults:
        end = next((end for end in ends if end > at), None)
        if end is not None:
            found.setdefault(end, (at, []))[1].append(kind)
    return [Outage(" + ".join(kinds), end - at) for end, (at, kinds) in found.items()]


def bench_faults() -> Iterator[Result]:
    """Goodput with faults 20 and 5 checkpoint intervals apart, beside what arithmetic makes of the restarts
    that were measured on the way."""
    for apart in (20, 5):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            trained = Trained(Path(folder), images_seen=10**9, checkpoint_seconds=INTERVAL, workers=WORKERS)
            with Supervised(trained) as run:
                while not run.training():
                    run.wait(1.0)
                chance, start = random.Random(apart), time.monotonic()
                for gap, kind in schedule(apart * INTERVAL, SECONDS, seed=apart):
                    run.wait(gap)
                    run.strike(kind, chance)
                run.wait(max(0.0, SECONDS - (time.monotonic() - start)))
                while not run.training():
                    run.wait(1.0)
            yield judged(apart, run.faults, trained.attempts())


def judged(apart: int, faults: Sequence[tuple[float, str]], attempts: Sequence[Tally]) -> Result:
    """What the account says from the end of the first step on, beside the model
    1 - (interval / 2 + outage) / mean time between outages: the first start is no fault's."""
    found, lost = totals(attempts), outages(faults, attempts)
    for name in ("start", "restore"):
        found[name] -= attempts[0].seconds.get(name, 0.0)
    wall, taken = sum(found.values()), defaultdict[str, list[float]](list)
    for outage in lost:
        taken[outage.kind].append(outage.seconds)
    restart, between = statistics.mean(outage.seconds for outage in lost), wall / len(lost)
    goodput, model = found["step"] / wall, 1 - (INTERVAL / 2 + restart) / between
    kinds = ", ".join(f"{kind} {statistics.median(some):.1f} s" for kind, some in sorted(taken.items()))
    spent = ", ".join(f"{found[name] / wall:.1%} {said}" for name, said in CATEGORIES.items() if found[name])
    return Result(
        name=f"train/goodput_faults_{apart}_intervals_apart",
        value=goodput,
        unit="share",
        target=model - 0.05,
        better="higher",
        against=f"1 - ({INTERVAL:g} s / 2 + {restart:.1f} s) / {between:.0f} s = {model:.3f}",
        n=len(lost),
        note=f"{wall / 60:.0f} min, {len(attempts)} attempts; {len(faults)} faults; restarts: {kinds}; "
        f"time: {spent}",
        extra={"restarts": dict(taken), "seconds": found},
    )
