"""A network's activations made again in the backward pass, instead of kept for it (Chen et al., 2016)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffusion.compilation import blocks


def recompute_blocks(module: nn.Module) -> int:
    """Makes every repeated block (`diffusion.compilation.blocks`) forget in place what is inside it.

    Only the blocks' inputs are kept from forward to backward, and what they compute is computed once more:
    a third more arithmetic, in a fraction of the memory, to the very same gradients. Parameters, their names
    and the module's type stay what they are; so does a call without gradients. A deep copy does the same.
    Call it before `compile_blocks`, which then sees what is done twice, and before DDP or `fully_shard`,
    which gathers a block's weights around both.

    Returns:
        Number of blocks.

    Raises:
        ValueError: there are none.
    """
    found = list(blocks(module))
    if not found:
        raise ValueError(
            f"{type(module).__name__} has no repeated blocks (an nn.ModuleList): leave `recompute` out."
        )
    for block in found:
        if "forward" not in vars(block):
            # Not a closure: a deep copy of it would call the block that it was copied from.
            block.forward = functools.partial(_twice, block.forward)
    return len(found)


def _twice(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
