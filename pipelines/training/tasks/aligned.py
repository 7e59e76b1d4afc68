"""A denoiser's training that draws its tokens towards stored features of the clean image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.alignment import Aligned, alignment
from diffusion.networks.dit import DiT
from pipelines.arrays import from_npy
from pipelines.training.tasks.decoded import Decoded
from pipelines.training.tasks.rows import Rows

if TYPE_CHECKING:
    from diffusion.config import AlignmentConfig
    from pipelines.stages.train import Train


class Features:
    """Maps [c, rows, columns] of a split's samples, as an extract stage stored them.

    Raises:
        ValueError: they are vectors, which say nothing of places.
    """

    def __init__(self, rows: Rows, *, budget: int) -> None:
        self._maps = Decoded(
            lambda n: from_npy(rows.read(n, "features", "features.npy")),
            len(rows),
            dtype=np.float16,
            budget=budget,
        )
        if len(self._maps.shape) != 3:
            raise ValueError(
                f"`features` holds vectors of {self._maps.shape[0]}, and alignment needs maps: "
                "set another `layer` in its extract stage."
            )
        self.channels: int = self._maps.shape[0]

    def of(self, indices: np.ndarray, flip: np.ndarray) -> Tensor:
        """[b, c, rows, columns] in fp16, mirrored where `flip` says so: near enough to what the network sees
        of the mirrored image."""
        maps = torch.from_numpy(self._maps[indices])
        return torch.where(torch.from_numpy(flip)[:, None, None, None], maps.flip(-1), maps)


def aligned(network: nn.Module, config: AlignmentConfig, features: Features) -> Aligned:
    """The network with the projector that training alone needs."""
    assert isinstance(network, DiT)
    depth = len(network.blocks) // 3 if config.depth is None else config.depth
    if depth >= len(network.blocks):
        raise ValueError(
            f"alignment.depth is {depth}, and the network has {len(network.blocks)} blocks: it must be less."
        )
    return Aligned(network, depth=depth, features=features.channels)


def plain(module: nn.Module) -> nn.Module:
    """The network itself."""
    return module.network if isinstance(module, Aligned) else module


def wanted(stage: Train, positions: np.ndarray) -> bool:
    """Whether the step of these positions aligns: not in the cooldown, so that a longer training goes on from
    a shorter one, and not past `alignment.images_seen`."""
    if stage.alignment is None:
        return False
    start = int(positions[0]) // stage.batch * stage.batch
    last = stage.images_seen - stage.optimization.cooldown
    return start <= last and start < (stage.alignment.images_seen or stage.images_seen)


def losses(
    config: AlignmentConfig,
    module: nn.Module,
    target: Tensor | None,
    denoising: Callable[[Any], Tensor],
) -> Tensor:
    """Per-sample losses: `denoising` of a network, and the distance of its tokens from the target's places.

    Args:
        module: an `Aligned`, or DDP around one.
        target: features [b, c, rows, columns]; resized to the tokens' rows and columns where they differ.
            None: the projector is called and counts nothing, so that its gradient is there and zero.
    """
    seen: list[Tensor] = []

    def network(*given: Any) -> Tensor:
        output, tokens = module(*given)
        seen.append(tokens)
        return output

    found = denoising(network)
    tokens = seen[0]
    if target is None:
        return found + 0 * tokens.flatten(1).sum(1)
    target = target.to(tokens.dtype)
    if target.shape[-2:] != tokens.shape[-2:]:
        target = nn.functional.interpolate(target, tokens.shape[-2:], mode="bilinear", antialias=True)
    return found + config.weight * alignment(tokens, target)
