"""How much a training step computes, from the shapes of what it is given."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from diffusion.config import DiTConfig, UNetConfig
from diffusion.networks.flops import flops

if TYPE_CHECKING:
    from torch import nn

    from diffusion.conditioning import Conditioning
    from diffusion.config import NetworkConfig
    from pipelines.pretrained.denoiser import DiffusersNetwork


@runtime_checkable
class Counted(Protocol):
    """A task that knows how much it computes."""

    def work(self, share: Any) -> float | None:
        """Floating-point operations of a share's step, forward and backward; None if it cannot tell.
        Read from shapes and configuration: never waits for the device."""
        ...


class DenoiserWork:
    """Of a network that is trained on latents.

    Counted are the products of matrices that the model needs (`diffusion.networks.flops`, a multiplication
    and an addition as two), without the tokens that pass by: once forward, once back to the inputs, and once
    back to the weights that are trained, by their share of all. So three times the forward pass, or twice
    where only adapters learn. What is computed again to save memory, what prepares the inputs, and what a
    loss adds beside the network do not count (as in Chowdhery et al., 2022, appendix B).
    """

    def __init__(
        self,
        config: NetworkConfig | DiffusersNetwork,
        module: nn.Module,
        *,
        text_width: int | None,
        pooled_width: int | None,
        low_channels: int,
    ) -> None:
        """The widths as the network is built with."""
        self._config, self._module = config, module
        self._built = {
            "text_width": text_width,
            "pooled_width": pooled_width,
            "low_channels": low_channels,
        }
        self._known: dict[tuple[int, ...], int] = {}

    def __call__(self, shape: tuple[int, ...], conditioning: Conditioning) -> float | None:
        """Of a step on latents of this shape [b, c, h, w]; None of a network that is not counted yet."""
        config = self._config
        if not isinstance(config, DiTConfig | UNetConfig):
            return None
        count, channels, height, width = shape
        text, route = conditioning.text, conditioning.route
        tokens, kept = 0 if text is None else text.shape[1], 0 if route is None else route.shape[1]
        seen = (channels, height, width, tokens, kept)
        if seen not in self._known:
            self._known[seen] = self._forward(config, *seen)
        return count * self._known[seen] * (2 + self._trained)

    def _forward(
        self, config: DiTConfig | UNetConfig, channels: int, height: int, width: int, text: int, kept: int
    ) -> int:
        share = 1.0
        if kept and isinstance(config, DiTConfig):
            share = kept / ((height // config.patch) * (width // config.patch))
        size = (height, width)
        return flops(config, channels=channels, size=size, text_tokens=text, kept=share, **self._built)

    @functools.cached_property
    def _trained(self) -> float:
        sizes = [(p.numel(), p.requires_grad) for p in self._module.parameters()]
        return sum(size for size, learns in sizes if learns) / max(1, sum(size for size, _ in sizes))
