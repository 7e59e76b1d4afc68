"""A module, spread over the workers of a gang."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.training.config import ParallelConfig

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from cluster.gang import Member


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """What the losses call, and what looks at the averages."""

    module: nn.Module
    """Calls the task's module: that itself, or the DDP around it."""
    ddp: DistributedDataParallel | None
    averaged: nn.Module
    """A whole module on this worker for the averaged weights, in evaluation mode."""


def device(member: Member, *, accelerated: bool) -> torch.device:
    """This worker's own."""
    import torch

    if not (accelerated and torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", member.local_rank % torch.cuda.device_count())


def spread(
    module: nn.Module,
    config: ParallelConfig,
    *,
    member: Member,
    device: torch.device,
    precision: Literal["float32", "bfloat16"],
    recompute: bool,
    compiled: bool,
    shapes: int,
) -> Spread:
    """Spreads `module`, in place where its parameters are cut, before a training starts with it.

    Args:
        recompute: forgets the blocks' activations and makes them again in the backward pass.
        compiled: compiles the blocks; `shapes`: of their input, in training.

    Raises:
        ValueError: the workers cannot be grouped so.
    """
    import copy

    from diffusion.compilation import compile_blocks

    averaged = copy.deepcopy(module).eval()
    if compiled:
        compile_blocks(module, shapes=shapes)
    ddp = None
    if member.world > 1:
        from torch.nn.parallel import DistributedDataParallel

        ddp = DistributedDataParallel(module)
    return Spread(module=module if ddp is None else ddp, ddp=ddp, averaged=averaged)
