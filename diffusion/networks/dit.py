"""A diffusion transformer conditioned on text tokens, a pooled text vector, a class, a size and the time."""

from __future__ import annotations

import operator
from typing import overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffusion.conditioning import Conditioning
from diffusion.networks.embeddings import (
    SizeEmbedding,
    TimeEmbedding,
    caption_context,
    class_embedding,
    pooled_embedding,
    with_low,
)
from diffusion.networks.layers import NORMS, CrossAttention, NormKind, SelfAttention, SwiGLU
from diffusion.networks.positions import position_table, rotary_table
from diffusion.networks.routing import put_back, take


class Block(nn.Module):
    """x += g1 attention(m1(x)); x += cross(x, text); x += g2 swiglu(m2(x)), g and m from adaLN-zero."""

    def __init__(self, width: int, heads: int, hidden: int, *, cross: bool, norm: NormKind) -> None:
        super().__init__()
        self.norm1, self.norm2 = NORMS[norm](width, scale=False), NORMS[norm](width, scale=False)
        self.attention = SelfAttention(width, heads, norm=norm)
        self.mlp = SwiGLU(width, hidden)
        self.cross_norm = NORMS[norm](width) if cross else None
        self.cross = CrossAttention(width, heads, norm=norm) if cross else None
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        condition: Float[Tensor, "b w"],
        context: Float[Tensor, "b m w"] | None,
        mask: Bool[Tensor, "b m"] | None,
        rotary: Float[Tensor, "2 *rows n half"],
    ) -> Float[Tensor, "b n w"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), rotary)
        if (
            self.cross is not None
            and self.cross_norm is not None
            and context is not None
            and mask is not None
        ):
            x = x + self.cross(self.cross_norm(x), context, mask)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """Peebles & Xie, 2023, with QK-norm, SwiGLU and rotary positions as in LightningDiT (Yao et al., 2025).

    Text tokens enter by cross-attention behind a learned null token, so that a sample without text (mask all
    False) still has something to look at; the pooled text, the class, the size and the time enter by
    adaLN-zero. The output of a new network is zero everywhere. Latents may have any height and width that
    are multiples of the patch: see `diffusion.networks.positions` for what carries over.

    Args:
        channels: of the latents, in and out.
        size: side of the (square) latents that it is trained on, a multiple of `patch`.
        classes: number of classes; id `classes` means none. 0 for a network without.
        text_width: channels of the text tokens; None for a network without.
        pooled_width: channels of the pooled vector; as the tokens have if None.
        cross_every: one block in so many has cross-attention, counted from the first.
        low_channels: of the small image's latents, seen beside its own (`Conditioning.low`); 0 without.
        norm: layer norm or RMSNorm, everywhere; see `layers`.
        size_conditioning: whether it is told `Conditioning.size`.
        route: first block, and block after the last, that only the tokens of `Conditioning.route` take.
        frame: tokens on a side of the frame that places are counted in; size / patch if None.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        classes: int,
        text_width: int | None,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        mlp_ratio: float,
        route: tuple[int, int],
        cross_every: int = 1,
        low_channels: int = 0,
        norm: NormKind = "layer",
        size_conditioning: bool = False,
        pooled_width: int | None = None,
        frame: int | None = None,
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(
                f"Patches of {patch} do not tile latents of side {size}: choose a patch that divides {size}."
            )
        if width % heads or (width // heads) % 4:
            raise ValueError(
                f"width {width} over {heads} heads must give a head width that is a multiple of 4."
            )
        self.channels, self.patch, self.classes = channels, patch, classes
        self.width, self.heads = width, heads
        side = frame or size // patch
        self.trained = (side, side)
        """Rows and columns of tokens that places are counted in."""
        self.route_start, self.route_end = route
        if not 0 <= self.route_start < self.route_end <= depth:
            raise ValueError(f"of {depth} blocks, {route} names none for tokens to skip.")

        self.embed = nn.Linear(patch * patch * (channels + low_channels), width)
        self.time = TimeEmbedding(width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.pooled = nn.Linear(pooled_width or text_width, width, bias=False) if text_width else None
        self.text = nn.Linear(text_width, width) if text_width else None
        self.text_norm = NORMS[norm](text_width) if text_width else None
        self.null = nn.Parameter(0.02 * torch.randn(width)) if text_width else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)

        # A multiple of 32 keeps the inner matrices aligned.
        hidden = max(32, round(mlp_ratio * width / 32) * 32)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, cross=text_width is not None and index % cross_every == 0, norm=norm)
            for index in range(depth)
        )
        self.norm = NORMS[norm](width, scale=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, patch * patch * channels)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

        self.level = TimeEmbedding(width) if low_channels else None
        self.size = SizeEmbedding(width) if size_conditioning else None

    @overload
    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, c_noise: Tensor, conditioning: Conditioning, *, tap: int
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        c_noise: Float[Tensor, " b"],
        conditioning: Conditioning,
        *,
        tap: int | None = None,
    ) -> Float[Tensor, "b c h w"] | tuple[Float[Tensor, "b c h w"], Float[Tensor, "b m width"]]:
        """Raw output in the space of `x`; `c_noise` is what the preconditioning makes of the time.

        With `tap`, also the tokens after block `tap`, in row-major order, for representation alignment (Yu et
        al., 2025, "REPA"); of a block that only some take, those of `Conditioning.route`.

        Raises:
            ValueError: the sides are no multiples of the patch; an upscaler is given no small image; there is
                no block `tap`.
        """
        if tap is not None and not 0 <= tap < len(self.blocks):
            raise ValueError(f"there is no block {tap} of {len(self.blocks)}, counted from 0.")
        condition = torch.nn.functional.silu(self.condition(c_noise, conditioning))
        context, mask = self.context(x.shape[0], conditioning)
        # A number also where a compiler would keep it open: the tables are for one size each.
        rows, columns = (operator.index(side) for side in self.grid(*x.shape[-2:]))
        # As wide as the weights are, like the buffers of any module.
        given = (x.device, self.embed.weight.dtype)

        seen = with_low(x, conditioning) if self.level is not None else x
        y = self.embed(self.patches(seen)) + position_table(rows, columns, self.width, self.trained, *given)
        rotary = everywhere = rotary_table(rows, columns, self.width // self.heads, *given)
        route, whole, tapped = conditioning.route, y, y
        for index, block in enumerate(self.blocks):
            if route is not None and index == self.route_start:
                whole, y, rotary = y, take(y, route), everywhere[:, route]
            y = block(y, condition, context, mask, rotary)
            if index == tap:
                tapped = y
            if route is not None and index + 1 == self.route_end:
                y, rotary = put_back(whole, y, route), everywhere

        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        output = self.image(self.out(modulate(self.norm(y), shift, scale)), rows, columns)
        return output if tap is None else (output, tapped)

    def condition(self, c_noise: Float[Tensor, " b"], conditioning: Conditioning) -> Float[Tensor, "b width"]:
        """Time, class, pooled text and size in one vector; an absent part adds what a dropped one adds."""
        condition = self.time(c_noise)
        if self.label is not None:
            condition = condition + class_embedding(self.label, conditioning.label, c_noise)
        if self.pooled is not None and conditioning.pooled is not None:
            condition = condition + pooled_embedding(self.pooled, conditioning.pooled)
        if self.level is not None and conditioning.level is not None:
            condition = condition + self.level(conditioning.level)
        if self.size is not None and conditioning.size is not None:
            condition = condition + self.size(conditioning.size)
        return condition

    def context(
        self, count: int, conditioning: Conditioning
    ) -> tuple[Float[Tensor, "b m width"] | None, Bool[Tensor, "b m"] | None]:
        """The null token, then the text tokens; and which of them are real."""
        if self.text is None or self.text_norm is None or self.null is None:
            return None, None
        return caption_context(self.null, self.text_norm, self.text, count, conditioning)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of latents with these sides."""
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"Latents of {height} x {width} are not made of patches of {self.patch}: fill both sides up."
            )
        return height // self.patch, width // self.patch

    def patches(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Non-overlapping patches in row-major order, each flattened as (channel, row, column)."""
        b, c, h, w = x.shape
        p = self.patch
        return x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)

    def image(self, tokens: Float[Tensor, "b n d"], rows: int, columns: int) -> Float[Tensor, "b c h w"]:
        """The inverse of `patches`."""
        p = self.patch
        x = tokens.reshape(-1, rows, columns, self.channels, p, p)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, self.channels, rows * p, columns * p)


def modulate(
    x: Float[Tensor, "b n w"], shift: Float[Tensor, "b 1 w"], scale: Float[Tensor, "b 1 w"]
) -> Float[Tensor, "b n w"]:
    return torch.addcmul(shift, x, 1 + scale)
