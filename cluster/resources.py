"""What a stage asks of the machines it runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Decides how fast a stage runs, never what comes out of it."""

    cpus: float | None = None
    """CPUs of one worker; torch uses as many threads. Half of the machine's if None and workers = 2, all if 1."""
    gpus: float = 0.0
    """GPUs of one worker."""
    workers: int | None = None
    """Parallel workers; for shard stages as many as fit if None, for training one."""
    memory: int | None = None
    """Bytes of one worker that Ray sets aside; unlimited if None."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"resources.workers is {self.workers}; it must be at least 1.")
        if self.cpus is not None and self.cpus <= 0:
            raise ValueError(f"resources.cpus is {self.cpus}; it must be above 0.")
