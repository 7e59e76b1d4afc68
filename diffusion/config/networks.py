"""Networks that a recipe can choose."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diffusion.config.later import later

if TYPE_CHECKING:
    from diffusion.networks.dit import DiT
    from diffusion.networks.unet import UNet


_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""Width, depth, heads (Peebles & Xie, 2023, Table 1)."""


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A diffusion transformer of about 18 width^2 depth parameters, 22 with captions, on (latent side /
    patch)^2 tokens."""

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
    norm: Literal["layer", "rms"] = later("layer")
    """Layer norm, the faster on CPUs, or RMSNorm, the faster on GPUs and compiled."""
    size_conditioning: bool = later(False)
    """Whether it is told the size of the source, the crop in it and the size to draw."""
    route: tuple[int, int] | None = later(None)
    """First block, and block after the last, that tokens can skip in training; None: `routed`."""
    frame: int | None = later(None)
    """Tokens on a side of the frame that places are counted in, whatever the latents' size: the trained
    latents' own if None. A training that goes on from smaller latents keeps theirs."""

    @classmethod
    def named(cls, name: str) -> DiTConfig:
        """Size and patch of the paper's networks: S, B, L or XL, and 1, 2 or 4, as in "B/2" (Peebles & Xie,
        2023, Table 1). `ValueError` for another."""
        names = {f"{size}/{patch}": (size, patch) for size in _SIZES for patch in (1, 2, 4)}
        if name not in names:
            close = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0)
            raise ValueError(
                f"{name!r} is no named size: did you mean {close[0]!r}? All: {', '.join(names)}."
            )
        size, patch = names[name]
        width, depth, heads = _SIZES[size]
        return cls(width=width, depth=depth, heads=heads, patch=patch)

    @property
    def routed(self) -> tuple[int, int]:
        """`route`, by default as in Krause et al., 2025: all but the first two and the last four blocks; in
        networks shallower than theirs a sixth and a third."""
        if self.route is not None:
            return self.route
        return min(2, self.depth // 6), self.depth - min(4, self.depth // 3)

    def build(
        self,
        *,
        channels: int,
        size: int,
        classes: int = 0,
        text_width: int | None = None,
        pooled_width: int | None = None,
        low_channels: int = 0,
    ) -> DiT:
        """For latents of `channels` x `size` x `size` in training, and any size after it; classes 0,
        text_width None, low_channels 0: none. pooled_width None: as text_width."""
        from diffusion.networks.dit import DiT

        return DiT(
            channels=channels,
            size=size,
            classes=classes,
            text_width=text_width,
            pooled_width=pooled_width,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            patch=self.patch,
            mlp_ratio=self.mlp_ratio,
            cross_every=self.cross_every,
            low_channels=low_channels,
            norm=self.norm,
            size_conditioning=self.size_conditioning,
            route=self.routed,
            frame=self.frame,
        )


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Convolutions at several scales: for latents or pixels of any size, as upscalers take them.

    Of a caption it sees the pooled vector, and the tokens where it has attention.
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
    attention: tuple[int, ...] = later(())
    """Levels whose places look at each other and at the caption's tokens, 0 the finest; with any, so does the
    middle. The cost grows with the fourth power of a level's side, and tiles are no longer exact."""
    size_conditioning: bool = later(False)
    """Whether it is told the size of the source, the crop in it and the size to draw."""

    def build(
        self,
        *,
        channels: int,
        size: int,
        classes: int = 0,
        text_width: int | None = None,
        pooled_width: int | None = None,
        low_channels: int = 0,
    ) -> UNet:
        """For latents of `channels` x any size; classes 0, text_width None, low_channels 0: without.
        pooled_width None: as text_width."""
        from diffusion.networks.unet import UNet

        return UNet(
            channels=channels,
            classes=classes,
            text_width=text_width,
            pooled_width=pooled_width,
            low_channels=low_channels,
            widths=tuple(self.channels * m for m in self.multipliers),
            blocks=self.blocks,
            stem=self.stem,
            attention=self.attention,
            size_conditioning=self.size_conditioning,
        )


NetworkConfig = DiTConfig | UNetConfig
