"""A diffusion transformer conditioned on text tokens, a pooled text vector, a class and the time."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffusion.conditioning import Conditioning
from diffusion.networks.layers import (
    CrossAttention,
    Norm,
    SelfAttention,
    SwiGLU,
    TimeEmbedding,
    class_embedding,
    pooled_embedding,
    position_table,
    rotary_angles,
    with_low,
)


class Block(nn.Module):
    """x += g1 attention(m1(x)); x += cross(x, text); x += g2 swiglu(m2(x)), g and m from adaLN-zero."""

    def __init__(self, width: int, heads: int, hidden: int, *, cross: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(width, scale=False), Norm(width, scale=False)
        self.attention = SelfAttention(width, heads)
        self.mlp = SwiGLU(width, hidden)
        self.cross_norm = Norm(width) if cross else None
        self.cross = CrossAttention(width, heads) if cross else None
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        condition: Float[Tensor, "b w"],
        context: Float[Tensor, "b m w"] | None,
        mask: Bool[Tensor, "b m"] | None,
        cosine: Float[Tensor, "n half"],
        sine: Float[Tensor, "n half"],
    ) -> Float[Tensor, "b n w"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), cosine, sine)
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
    False) still has something to look at; the pooled text, the class and the time enter by adaLN-zero. The
    output of a new network is zero everywhere.

    Args:
        channels: of the latents, in and out.
        size: side of the (square) latents, a multiple of `patch`.
        classes: number of classes; id `classes` means none. 0 for a network without.
        text_width: channels of the text tokens and of the pooled vector; None for a network without.
        cross_every: one block in so many has cross-attention, counted from the first.
        low_channels: of the small image's latents, seen beside its own (`Conditioning.low`); 0 without.
    """

    cosine: Tensor
    sine: Tensor
    positions: Tensor

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
        cross_every: int = 1,
        low_channels: int = 0,
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
        grid = size // patch

        self.embed = nn.Linear(patch * patch * (channels + low_channels), width)
        self.time = TimeEmbedding(width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.pooled = nn.Linear(text_width, width, bias=False) if text_width else None
        self.text = nn.Linear(text_width, width) if text_width else None
        self.text_norm = Norm(text_width) if text_width else None
        self.null = nn.Parameter(0.02 * torch.randn(width)) if text_width else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)

        # A multiple of 32 keeps the inner matrices aligned.
        hidden = max(32, round(mlp_ratio * width / 32) * 32)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, cross=text_width is not None and index % cross_every == 0)
            for index in range(depth)
        )
        self.norm = Norm(width, scale=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, patch * patch * channels)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

        self.level = TimeEmbedding(width) if low_channels else None

        angles = rotary_angles(grid, grid, width // heads)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        self.register_buffer("positions", position_table(grid, grid, width), persistent=False)

    def forward(
        self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Raw output in the space of `x`; `c_noise` is what the preconditioning makes of the time."""
        condition = torch.nn.functional.silu(self.condition(c_noise, conditioning))
        context, mask = self.context(x.shape[0], conditioning)

        seen = with_low(x, conditioning) if self.level is not None else x
        y = self.embed(self.patches(seen)) + self.positions
        for block in self.blocks:
            y = block(y, condition, context, mask, self.cosine, self.sine)

        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.image(self.out(modulate(self.norm(y), shift, scale)), x.shape[-1])

    def condition(self, c_noise: Float[Tensor, " b"], conditioning: Conditioning) -> Float[Tensor, "b width"]:
        """Time, class and pooled text in one vector; a part that is absent adds what a dropped one adds."""
        condition = self.time(c_noise)
        if self.label is not None:
            condition = condition + class_embedding(self.label, conditioning.label, c_noise)
        if self.pooled is not None and conditioning.pooled is not None:
            condition = condition + pooled_embedding(self.pooled, conditioning.pooled)
        if self.level is not None and conditioning.level is not None:
            condition = condition + self.level(conditioning.level)
        return condition

    def context(
        self, count: int, conditioning: Conditioning
    ) -> tuple[Float[Tensor, "b m width"] | None, Bool[Tensor, "b m"] | None]:
        """The null token, then the text tokens; and which of them are real."""
        if self.text is None or self.text_norm is None or self.null is None:
            return None, None
        null = self.null.expand(count, 1, -1)
        seen = torch.ones(count, 1, dtype=torch.bool, device=null.device)
        if conditioning.text is None:
            return null, seen
        mask = conditioning.mask
        if mask is None:
            mask = torch.ones(conditioning.text.shape[:2], dtype=torch.bool, device=null.device)
        text = self.text(self.text_norm(conditioning.text))
        return torch.cat([null, text], dim=1), torch.cat([seen, mask], dim=1)

    def patches(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Non-overlapping patches in row-major order, each flattened as (channel, row, column)."""
        b, c, h, w = x.shape
        p = self.patch
        return x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)

    def image(self, tokens: Float[Tensor, "b n d"], size: int) -> Float[Tensor, "b c h w"]:
        """The inverse of `patches` for a square of side `size`."""
        p, grid = self.patch, size // self.patch
        x = tokens.reshape(-1, grid, grid, self.channels, p, p)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, self.channels, size, size)


def modulate(
    x: Float[Tensor, "b n w"], shift: Float[Tensor, "b 1 w"], scale: Float[Tensor, "b 1 w"]
) -> Float[Tensor, "b n w"]:
    return torch.addcmul(shift, x, 1 + scale)
