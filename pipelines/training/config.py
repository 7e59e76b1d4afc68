"""How a training is spread over workers and kept from harm, as a recipe says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.resources import Resources
from pipelines.stage import execution


@dataclass(frozen=True, kw_only=True)
class DDPConfig:
    """Each worker holds the whole network; gradients are averaged (Li et al., 2020)."""

    kind: Literal["ddp"] = "ddp"


@dataclass(frozen=True, kw_only=True)
class FSDPConfig:
    """Each worker holds a part of the weights, their averages and the optimizer's state, and sees the others'
    while it computes (FSDP2; Zhao et al., 2023)."""

    kind: Literal["fsdp"] = "fsdp"
    replicas: int = 1
    """Groups of workers of which each holds a whole network (hybrid sharding): the number of nodes, say, so
    that weights travel within a node only. Must divide `resources.workers`; while an elastic training has
    fewer, as many as divide those, too."""
    reshard: bool = True
    """Drops the others' parts after the forward pass and asks for them again, and cuts the gradients of every
    piece of a batch (`accumulate`) at once: less memory, more talk."""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"parallel.replicas is {self.replicas}; it must be at least 1.")


ParallelConfig = DDPConfig | FSDPConfig


def check_parallel(config: ParallelConfig, resources: Resources) -> None:
    """`ValueError` where the workers cannot be grouped so."""
    workers = resources.workers or 1
    if isinstance(config, FSDPConfig) and workers % config.replicas:
        raise ValueError(
            f"parallel.replicas is {config.replicas}, and resources.workers {workers}: set `replicas` to a "
            "number that divides them."
        )


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a training goes back and leaves out what harmed it (by hand in Chowdhery et al., 2022).

    A step without a finite gradient changes nothing, whatever stands here."""

    patience: int = 10
    """Bad steps in a row after which it goes back to a checkpoint from before the first of them, and leaves
    them out; if that does not help, to older ones, and more before them."""
    spike: float | None = None
    """Gradient norm over its running typical value above which a step is bad, too; any is good if None."""
    rollbacks: int = 5
    """How often it may go back on account of about the same place before it gives up."""
    replicas_every: int | None = execution(None)
    """Images between two comparisons of the workers' weights, which are the same unless a machine errs; then
    it goes back, and names the worker. With `ddp` only; weights are read twice more a step."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.rollbacks < 0:
            raise ValueError("guard.patience must be at least 1, and guard.rollbacks at least 0.")
        if self.replicas_every is not None and self.replicas_every < 1:
            raise ValueError(f"guard.replicas_every is {self.replicas_every}; it must be at least 1 image.")
        if self.spike is not None and self.spike <= 1:
            raise ValueError(f"guard.spike is {self.spike}; it must be above 1, 100 say.")
