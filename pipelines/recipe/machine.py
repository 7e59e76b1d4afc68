"""What this machine has to train on, found without torch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import Self

from cluster.resources import Capacity


@dataclass(frozen=True, kw_only=True)
class Machine:
    cores: int
    memory: int
    """Bytes."""
    gpus: tuple[str, ...] = ()
    """Names."""
    gpu_memory: int = 0
    """Bytes of the smallest one."""

    @classmethod
    def here(cls) -> Self:
        import psutil

        names, sizes = _gpus()
        return cls(
            cores=int(Capacity.here().cpus),
            memory=psutil.virtual_memory().total,
            gpus=tuple(names),
            gpu_memory=min(sizes, default=0),
        )

    def told(self) -> str:
        """One line for people."""
        gpus = (
            f"{len(self.gpus)} x {self.gpus[0]} ({self.gpu_memory / 2**30:.0f} GB)" if self.gpus else "no GPU"
        )
        return f"machine    {self.cores} cores, {self.memory / 2**30:.0f} GB of memory, {gpus}"


def _gpus() -> tuple[list[str], list[int]]:
    """Names and bytes of memory, as the driver tells them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return [], []
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return [name.strip() for name, _, _ in rows], [int(size) * 2**20 for _, _, size in rows]
