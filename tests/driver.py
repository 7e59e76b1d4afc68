"""A driver of its own process for tests, which can be made to die at a chosen point of its way.

Imported once by the process that `tests.fresh` forks, with all that stages and their tests import, so that a
driver starts in no time.
"""

from __future__ import annotations

import fnmatch
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy  # noqa: F401 - imported here so that each process finds it imported
import PIL.ImageDraw
import PIL.ImageFont  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pydantic.dataclasses  # noqa: F401
import pytest  # noqa: F401
import ray  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.nn.parallel
import torch.nn.utils

import diffusion.recomputation
import diffusion.samplers.heun  # noqa: F401
import pipelines.stages.generate
import pipelines.training.loop
import pipelines.training.tasks.autoencoder
import pipelines.training.tasks.denoiser
import pipelines.training.trainer
from cluster.storage import LocalStorage, Storage
from pipelines import config, pipeline


@dataclass(frozen=True)
class Death:
    """Where a driver is killed: at a write of a file in the store, or at an optimizer step."""

    file: str = ""
    """Pattern of the file's path in the store; the first write of a matching one counts."""
    moment: Literal["before", "within", "after"] = "before"
    step: tuple[str, int] | None = None
    """Snapshot file that is trained for, and the images_seen after which the driver dies."""

    def arm(self, store: Path) -> None:
        if self.step is not None:
            self._arm_step(*self.step)
        else:
            self._arm_write(store)

    def _arm_step(self, file: str, images_seen: int) -> None:
        original = pipelines.training.loop.Loop.step

        def step(log: Any, progress: Any) -> None:
            if log.training.file == file and progress.images_seen >= images_seen:
                die()
            original(log, progress)

        pipelines.training.loop.Loop.step = step

    def _arm_write(self, store: Path) -> None:
        original = LocalStorage.put_if_absent

        def put_if_absent(storage: LocalStorage, name: str, source: bytes | Path) -> bool:
            path = (storage.path / name).relative_to(store).as_posix()
            hit = fnmatch.fnmatch(path, self.file)
            if hit and self.moment == "within":
                data = source.read_bytes() if isinstance(source, Path) else bytes(source)
                (storage.path / name).parent.mkdir(parents=True, exist_ok=True)
                (storage.path / f".{name}.torn.partial").write_bytes(data[: len(data) // 2])
            if hit and self.moment != "after":
                die()
            done = original(storage, name, source)
            if hit:
                die()
            return done

        LocalStorage.put_if_absent = put_if_absent


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def drive(recipe: str, store: str, flags: list[str], death: Death | None, until: str | None = None) -> None:
    """Runs a recipe in this process as `latentmill run --executor inline` does."""
    torch.set_num_threads(1)
    if death is not None:
        death.arm(Path(store))
    pipeline.run(config.load(recipe, flags), Storage.at(store), executor="inline", record=False, until=until)
