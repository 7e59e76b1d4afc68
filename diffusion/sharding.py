"""Tensors that FSDP2 cut over ranks (`DTensor`), beside plain ones: what trains and averages takes either.

Nothing here imports `torch.distributed.tensor` before there is such a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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
