"""Gangs of processes over gloo, without Ray, that train something small and can be harmed in any way.

They are forked from a process that has imported all and computed nothing: autograd may not be forked once it
has been used. So whoever runs gangs does it in a fresh process (`afresh`).
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from cluster.gang import GangPaused, Member
from cluster.storage import Storage
from diffusion import randomness
from diffusion.config import OptimizationConfig
from pipelines.training import loop
from pipelines.training.job import Job, Training
from pipelines.training.trainer import train_worker
from tests import fresh

BATCH = 8
SAMPLES = 480
BEFORE = 10.0
"""Held-out loss of what has learnt nothing, about; a perfect one's is 0.09."""
PAUSED, FAILED = 75, 3
"""Exit codes of a rank."""
NAMES = ("gangs", "test_injections", "test_kills")
"""Modules that the code which `afresh` runs knows."""
Arrange = Callable[[int], None]
"""Called in each rank before it trains."""


def training(**changes: Any) -> Training:
    fields: dict[str, Any] = {
        "batch": BATCH,
        "images_seen": 100 * BATCH,
        "optimization": OptimizationConfig(lr=1e-2, warmup=80, cooldown=160, ema_others=(0.05,)),
        "seed": 0,
        "precision": "float32",
        "accelerated": False,
        "file": "weights.safetensors",
        "validate_every": None,
        "samples_every": None,
        "checkpoint_every": 5 * BATCH,
        "checkpoint_seconds": None,
    }
    return Training(**{**fields, **changes})


@dataclass
class Share:
    x: Tensor
    y: Tensor
    at: Tensor
    """Positions in the stream."""

    def to(self, device: torch.device) -> Share:
        return self


class Toy:
    """Learns a function from noisy values; the noise depends on the position in the stream."""

    groups = ()
    length = SAMPLES

    def __init__(self, device: torch.device, workers: int) -> None:
        self.module = nn.Sequential(
            nn.Linear(4, 24), nn.SiLU(), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 1)
        )

    def share(self, positions: np.ndarray, indices: np.ndarray) -> Share:
        x = randomness.normal(1, indices, (4,))
        noise = randomness.normal(2, positions, ())
        return Share(x, value(x) + 0.3 * noise, torch.from_numpy(positions))

    def losses(self, module: nn.Module, share: Share) -> Tensor:
        return (module(share.x)[:, 0] - share.y) ** 2

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        at = np.arange(1000, 1512)
        x = randomness.normal(1, at, (4,))
        y = value(x) + 0.3 * randomness.normal(3, at, ())
        with torch.no_grad():
            return {"val_loss": ((module(x)[:, 0] - y) ** 2).mean().item()}

    def picture(self, module: nn.Module) -> bytes | None:
        return None

    def facts(self) -> dict[str, Any]:
        return {}

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        return dict(module.state_dict())


def value(x: Tensor) -> Tensor:
    return 2 * x[:, 0] - x[:, 1] + x[:, 2].abs()


def import_all() -> None:
    """Before forking, so that each process need not: an optimizer alone imports for seconds."""
    torch.set_num_threads(1)
    for name in ("torch.nn.parallel", "safetensors.torch", "torch.nn.utils"):
        importlib.import_module(name)
    training().optimization.build(Toy(torch.device("cpu"), 1).module)[0].zero_grad()


def gang(
    world: int, folder: Path, train: Training, *, arrange: Arrange = lambda rank: None, lease: int = 1
) -> list[int]:
    """Trains in `folder`, to a `result.json` beside rank 0's events and each rank's losses; exit codes.

    Once one rank has died or failed the others are killed, as Ray Train does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{os.urandom(4).hex()}"
    context = multiprocessing.get_context("fork")

    def work(rank: int) -> None:
        if world > 1:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
            )
        _write_losses(folder / f"losses-{rank}.txt")
        stop: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        arrange(rank)
        events: list[dict[str, Any]] = []
        member = Member(rank=rank, world=world, event=events.append, threads=1, stopping=lambda: bool(stop))
        code, said = 0, {}
        job = Job(
            training=train,
            task=Toy,
            output=Storage.at(folder / "output"),
            checkpoints=Storage.at(folder / "checkpoints"),
            lease=lease,
        )
        try:
            said = train_worker({"job": job}, member)
        except GangPaused:
            code = PAUSED
        except ValueError as error:
            code, said = FAILED, {"error": str(error)}
        if rank == 0:
            notes = [event["text"] for event in events if event["kind"] == "note"]
            (folder / "result.json").write_text(json.dumps({**said, "notes": notes}))
        os._exit(code)  # whatever still runs in threads

    ranks = [context.Process(target=work, args=(rank,)) for rank in range(world)]
    for process in ranks:
        process.start()
    left = list(ranks)
    while left:
        multiprocessing.connection.wait([process.sentinel for process in left])
        for process in [process for process in left if process.exitcode is not None]:
            left.remove(process)
            if process.exitcode not in (0, PAUSED):
                for other in left:
                    other.kill()
    meeting.unlink(missing_ok=True)
    return [process.exitcode or 0 for process in ranks]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def losses(folder: Path, rank: int) -> list[tuple[int, str]]:
    """(images seen, loss and norm to the bit) of every step that was taken, in their order."""
    lines = (folder / f"losses-{rank}.txt").read_text().splitlines()
    return [(int(line.split()[0]), line.partition(" ")[2]) for line in lines]


def afresh(code: str, folder: Path, *, timeout: float) -> None:
    """Runs `code` in a fresh process, in which `folder` is where it works."""
    fresh.run(_execute, code, folder, timeout=timeout)


def _execute(code: str, folder: Path) -> None:
    import_all()
    names = {name: importlib.import_module(f"tests.pipelines.training.{name}") for name in NAMES}
    exec(code, {**names, "Path": Path, "folder": folder})


def _write_losses(path: Path) -> None:
    """Each step's own, at once: what a killed process had written stays."""
    step, file = loop.Loop.step, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def writing(self: loop.Loop, progress: Any) -> None:
        said = f"{progress.images_seen} {progress.loss.item().hex()} {progress.grad_norm.item().hex()}\n"
        os.write(file, said.encode())
        step(self, progress)

    loop.Loop.step = writing
