"""Batches in memory that a GPU reads by itself, while the process goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def pinned(share: Any, device: torch.device) -> Any:
    """The share with its CPU tensors in page-locked memory, if it is to go to a GPU.

    From there `to(device, non_blocking=True)` returns at once; from ordinary memory the process would wait
    for the copy, and with it for all that the GPU has yet to do. Torch keeps the memory until it is copied.

    Args:
        share: a nest of dataclasses; what else is in it stays as it is.
    """
    if device.type != "cuda":
        return share
    return mapped(share, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`function` of every tensor in a nest of dataclasses, of which a new one is made."""
    import torch

    if isinstance(value, torch.Tensor):
        return function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: mapped(getattr(value, f.name), function) for f in dataclasses.fields(value) if f.init
        }
        return dataclasses.replace(value, **fields)
    return value
