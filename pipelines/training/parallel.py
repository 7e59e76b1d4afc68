"""A module, spread over the workers of a gang."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.training.config import FSDPConfig, ParallelConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cluster.gang import Member
    from diffusion.sharding import Quiet
    from diffusion.training import Rival


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """What the losses call, and what looks at the averages."""

    module: nn.Module
    """Calls the task's module: that itself, or the DDP around it."""
    ddp: Quiet | None
    """What lets workers add up gradients of their own before they share them (`fit`)."""
    averaged: nn.Module
    """A whole module for the averaged weights, in evaluation mode: on rank 0's device, and a shell without
    memory (on meta) on the others, which only help to gather."""


def device(member: Member, *, accelerated: bool) -> torch.device:
    """This worker's own, which becomes the process's: NCCL takes it for granted from its first message on.

    Of the GPUs that the process sees, the one of the worker's place on its machine: Ray Train shows each
    worker those of all its workers there, as torchrun does.
    """
    import torch

    if not (accelerated and torch.cuda.is_available()):
        return torch.device("cpu")
    chosen = torch.device("cuda", member.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(chosen)
    return chosen


@contextlib.contextmanager
def grouped(config: ParallelConfig, member: Member, device: torch.device) -> Iterator[None]:
    """A process group for a single worker that shards and has none, for as long as the block lasts."""
    import torch.distributed

    if member.world > 1 or not isinstance(config, FSDPConfig) or torch.distributed.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


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
    rival: Rival | None = None,
) -> Spread:
    """Spreads `module`, in place where its parameters are cut, before a training starts with it.

    Under DDP, weights and gradients are fp32, and autocast makes bf16 of them in the arithmetic. Under FSDP2
    the same autocast stands around the same arithmetic, and a GPU gathers the blocks' weights in bf16
    already (`diffusion.sharding.shard`): weights, sums of gradients, averages and the optimizer's state are
    fp32 as well, so that a recipe means the same under both.

    Args:
        recompute: forgets the blocks' activations and makes them again in the backward pass.
        compiled: compiles the blocks; `shapes`: of their input, in training.
        rival: of the training, if it has one.

    Raises:
        ValueError: the workers cannot be grouped so, or the module cannot be cut.
    """
    import torch

    from diffusion.compilation import compile_blocks
    from diffusion.recomputation import recompute_blocks
    from diffusion.sharding import shard

    if isinstance(config, FSDPConfig) and rival is not None:
        # Its weight comes of the gradient of one weight, asked for in the middle of a step.
        raise ValueError(
            f"A training against a {rival.name} cannot be sharded: set `parallel: {{kind: ddp}}`."
        )
    averaged = _copy(module, shell=member.rank > 0).eval()
    # In this order: what is compiled knows what is done twice, and both happen while a block is gathered.
    if recompute:
        recompute_blocks(module)
    if compiled:
        compile_blocks(module, shapes=shapes)
    half = precision == "bfloat16" and device.type == "cuda"
    if half:
        # For the little that autocast leaves in fp32: TF32 is still finer than the rest.
        torch.set_float32_matmul_precision("high")
    if isinstance(config, FSDPConfig):
        cut = shard(
            module,
            replicas=math.gcd(config.replicas, member.world),
            reshard=config.reshard,
            gathered=torch.bfloat16 if half else None,
        )
        return Spread(module=module, ddp=cut, averaged=averaged)
    if member.world > 1:
        from torch.nn.parallel import DistributedDataParallel

        # Gradients lie in the messages' own memory: a whole copy of them less.
        ddp = DistributedDataParallel(module, gradient_as_bucket_view=True)
        return Spread(module=ddp, ddp=ddp, averaged=averaged)
    return Spread(module=module, ddp=None, averaged=averaged)


def _copy(module: nn.Module, *, shell: bool) -> nn.Module:
    """The same module again, with the very parameters that are not trained; a shell has its shapes, and no
    memory."""
    import copy

    import torch
    from torch import nn

    memo: dict[int, Tensor] = {id(p): p for p in module.parameters() if not p.requires_grad}
    if shell:
        for parameter in module.parameters():
            empty = torch.empty_like(parameter, device="meta")
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo)
