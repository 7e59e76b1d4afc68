"""Compiling a network's blocks, each kind once, instead of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def compile_blocks(
    module: nn.Module,
    *,
    mode: str | None = None,
    backend: str | Callable[..., Any] = "inductor",
    shapes: int = 1,
) -> int:
    """Compiles the forward of every repeated block (`blocks`) in place; equal blocks share one graph.

    Parameters, their names and the module's type stay what they are, so optimizers, averages, checkpoints,
    DDP and FSDP2 see no difference; a deep copy is not compiled. Compile before wrapping, and after loading
    or before, as you like. Compilation itself happens in the first calls, one for each shape of input.

    Inductor stores what it compiled in `TORCHINDUCTOR_CACHE_DIR` (by default `torchinductor_<user>` in the
    system's folder for temporary files), and another process takes it from there; set it to a folder that
    outlives the machine or container to keep it. A transformer block's forward and backward take about a
    minute on a CPU without it, which only a long training earns back.

    Args:
        mode: of `torch.compile`.
        shapes: of the input in training, each of which has a graph of its own: sizes of images, say.

    Returns:
        Number of blocks.

    Raises:
        ValueError: there are none.
    """
    found = list(blocks(module))
    if not found:
        raise ValueError(f"{type(module).__name__} has no repeated blocks (an nn.ModuleList) to compile.")
    # Blocks of one class share their code, whose graphs dynamo limits to 8; beyond, it gives up without a
    # word. Each block may need its own, in training and in evaluation, with gradients and without.
    limits: Any = torch._dynamo.config  # pyright: ignore[reportAttributeAccessIssue]
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(found) * shapes)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    for block in found:
        block.compile(mode=mode, backend=backend, dynamic=False)
    return len(found)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a network, in order: members of an `nn.ModuleList` or `nn.Sequential`, the
    outermost where they nest, that are no layers of torch's own."""
    for child in module.children():
        if isinstance(module, nn.ModuleList | nn.Sequential) and not type(child).__module__.startswith(
            "torch.nn."
        ):
            yield child
        else:
            yield from blocks(child)
