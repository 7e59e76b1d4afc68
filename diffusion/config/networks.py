"""Networks that a recipe can choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffusion.networks.dit import DiT
    from diffusion.networks.unet import UNet


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A diffusion transformer of about 14 width^2 depth parameters, on (latent side / patch)^2 tokens."""

    kind: Literal["dit"] = "dit"
    width: int = 256
    """Channels of a token."""
    depth: int = 6
    """Blocks."""
    heads: int = 4
    """Attention heads; width / heads must be a multiple of 4, and 32 to 64 is usual."""
    patch: int = 2
    """Side of a token, in latents."""
    mlp_ratio: float = 8 / 3
    """Hidden width of the feed-forward over width; 8/3 with its three matrices costs what 4 does with two."""
    cross_every: int = 1
    """One block in so many looks at the text tokens."""

    def build(
        self,
        *,
        channels: int,
        size: int,
        classes: int = 0,
        text_width: int | None = None,
        low_channels: int = 0,
    ) -> DiT:
        """For latents of `channels` x `size` x `size`; classes 0, text_width None, low_channels 0: none."""
        from diffusion.networks.dit import DiT

        return DiT(
            channels=channels,
            size=size,
            classes=classes,
            text_width=text_width,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            patch=self.patch,
            mlp_ratio=self.mlp_ratio,
            cross_every=self.cross_every,
            low_channels=low_channels,
        )


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Convolutions at several scales: for latents or pixels of any size, as upscalers take them.

    Of a caption it sees the pooled vector alone.
    """

    kind: Literal["unet"] = "unet"
    channels: int = 48
    """Of the finest level."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level over `channels`, fine to coarse; each level after the first halves the side."""
    blocks: int = 1
    """Residual blocks a level, on the way down and again on the way up."""
    stem: int = 2
    """Side of the blocks of latents that are folded into channels before the first convolution."""

    def build(
        self,
        *,
        channels: int,
        size: int,
        classes: int = 0,
        text_width: int | None = None,
        low_channels: int = 0,
    ) -> UNet:
        """For latents of `channels` x any size; classes 0, text_width None, low_channels 0: without."""
        from diffusion.networks.unet import UNet

        return UNet(
            channels=channels,
            classes=classes,
            text_width=text_width,
            low_channels=low_channels,
            widths=tuple(self.channels * m for m in self.multipliers),
            blocks=self.blocks,
            stem=self.stem,
        )


NetworkConfig = DiTConfig | UNetConfig
