"""Modules cut over ranks by FSDP2, and their tensors (`DTensor`) beside plain ones: what trains and averages
takes either.

Nothing here imports `torch.distributed.tensor` before there is such a tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diffusion.compilation import blocks


@runtime_checkable
class Quiet(Protocol):
    """DDP, or what does the same for FSDP2: ranks that add up gradients of their own for a while."""

    def no_sync(self) -> contextlib.AbstractContextManager[None]: ...


class Sharded:
    """A module that `shard` cut, by what DDP calls it."""

    def __init__(self, module: nn.Module, *, reshard: bool) -> None:
        self.module, self.reshard = module, reshard

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of backwards in here are added to those of the next one outside. With `reshard` each is
        still cut over the ranks of a replica at once, as a whole gradient is what there is no room for; only
        replicas keep silent."""
        module: Any = self.module
        switch = module.set_requires_all_reduce if self.reshard else module.set_requires_gradient_sync
        switch(False)
        try:
            yield
        finally:
            switch(True)


def shard(
    module: nn.Module,
    *,
    replicas: int = 1,
    reshard: bool = True,
    gathered: torch.dtype | None = None,
) -> Sharded:
    """Cuts a module's parameters over all ranks of the process group, in place (`fully_shard`): each repeated
    block (`diffusion.compilation.blocks`) is gathered by itself, and the rest as one.

    Gradients are reduced in fp32, and are sharded as the parameters are, which stay fp32. A forward pass must
    be a call of `module`, and be followed by a backward pass before a parameter is looked at again.

    Args:
        replicas: groups of ranks that hold a whole module each (hybrid sharding); ranks next to each other
            are of one group.
        reshard: drops gathered blocks between the forward and the backward pass.
        gathered: what blocks are gathered in, for the arithmetic under autocast of the same dtype: half the
            talk in bf16, and half the memory, as autocast keeps no copy. The matrices are those that autocast
            makes; gains of the blocks' norms are rounded, too. All else of the module, embeddings and the
            last layer, is gathered as it is. Torch's norms on a CPU take no gains in bf16 for inputs in fp32.

    Raises:
        ValueError: `replicas` does not divide the ranks; a parameter is a scalar, of which there is no part.
    """
    import torch.distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    ranks = torch.distributed.get_world_size()
    if ranks % replicas:
        raise ValueError(
            f"{replicas} replicas cannot share {ranks} workers: set `replicas` to a number that divides them."
        )
    scalars = [name for name, p in module.named_parameters() if p.ndim == 0]
    if scalars:
        raise ValueError(f"{scalars[0]} is a single number, which cannot be sharded: train with DDP.")
    kind = next(module.parameters()).device.type
    sides, names = (
        ((ranks,), ("shards",))
        if replicas == 1
        else (
            (replicas, ranks // replicas),
            ("replicas", "shards"),
        )
    )
    mesh = init_device_mesh(kind, sides, mesh_dim_names=names)
    # Inputs stay as they are: times and positions would lose their meaning in bf16.
    policy = MixedPrecisionPolicy(
        param_dtype=gathered,
        reduce_dtype=torch.float32 if gathered is not None else None,
        cast_forward_inputs=False,
    )
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in list(blocks(module)):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    # What is outermost ends the forward pass and begins the backward one: dropping it between is for nothing.
    fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=plain)
    return Sharded(module, reshard=reshard)


def sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """This rank's part, in the same memory; a plain tensor is its own."""
    return tensor.to_local() if sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of it, on every rank. A sharded one is gathered, which all ranks must do together."""
    return tensor.full_tensor() if sharded(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of whole tensors, as one rank alone would have it; all ranks must ask together."""
    return {name: whole(tensor) for name, tensor in tensors.items()}


def spread(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, equal on all ranks, laid out as `like` is: sharded in the same way, or plain."""
    if not sharded(like) or sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Without a source rank every rank cuts its own copy, and nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def joined(part: Tensor, like: Any) -> Tensor:
    """The whole of which each rank holds a `part`, cut as `like` is; a plain one is whole already."""
    if not sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    joint = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return joint.full_tensor()


@torch.no_grad()
def copy(into: Tensor, tensor: Tensor) -> None:
    """`into.copy_(tensor)` whichever of the two is sharded."""
    into.copy_(spread(tensor, into) if sharded(into) else whole(tensor))
