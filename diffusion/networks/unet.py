"""A convolutional network at several scales, for latents or pixels of any size."""

from __future__ import annotations

from itertools import zip_longest

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.conditioning import Conditioning
from diffusion.networks.embeddings import (
    SizeEmbedding,
    TimeEmbedding,
    caption_context,
    class_embedding,
    pooled_embedding,
    with_low,
)
from diffusion.networks.layers import CrossAttention, Norm, SelfAttention

Context = tuple[Float[Tensor, "b m e"], Bool[Tensor, "b m"]] | None
"""Context tokens, and which of them are real."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place (as in ConvNeXt; Liu et al., 2022).

    Unlike group norm it looks at no neighbour, so that an image in overlapping tiles is the image whole.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6, elementwise_affine=False)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:  # noqa: A002
        # Channels last in memory, the permuted tensor is contiguous and nothing is copied.
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv(silu(m(norm(conv(silu(norm(x))))))), m from the condition; the skip alone at first
    (Dhariwal & Nichol, 2021, section 3)."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(inputs), ChannelNorm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        for parameter in (*self.conv2.parameters(), *self.modulation.parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b e h w"]:
        shift, scale = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(torch.addcmul(shift, self.norm2(y), 1 + scale)))
        return self.skip(x) + y


class AttentionBlock(nn.Module):
    """x += attention(norm(x)); x += cross(norm(x), context): places look at each other, blind to where they
    are, and at a caption (Dhariwal & Nichol, 2021, section 3; QK-norm, Dehghani et al., 2023). The skip alone
    at first. Heads are 64 channels wide, or as many fewer as divide the width."""

    def __init__(self, width: int, context: int | None) -> None:
        super().__init__()
        heads = next(n for n in range(-(-width // 64), width + 1) if width % n == 0)
        self.norm, self.attention = Norm(width), SelfAttention(width, heads)
        self.cross_norm = Norm(width) if context else None
        self.cross = CrossAttention(width, heads, context=context) if context else None
        nn.init.zeros_(self.attention.out.weight)

    def forward(self, x: Float[Tensor, "b c h w"], context: Context) -> Float[Tensor, "b c h w"]:
        height, width = x.shape[-2:]
        y = x.permute(0, 2, 3, 1).flatten(1, 2)
        y = y + self.attention(self.norm(y), None)
        if self.cross is not None and self.cross_norm is not None and context is not None:
            y = y + self.cross(self.cross_norm(y), *context)
        return y.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """Ronneberger et al., 2015, with the residual blocks and, where it is asked for, the attention of
    Dhariwal & Nichol, 2021.

    The time, the class, the pooled text, the size and the level of noise in the small image modulate every
    block; the small image's latents are concatenated to the input (Saharia et al., 2021, "SR3"). The output
    of a new network is zero everywhere.

    Without attention it sees its surroundings only, so that an image in overlapping tiles is the image whole
    (`Tiled`). With attention it sees all of what it is given: tiles are then an approximation.

    Args:
        channels: of the latents, in and out.
        classes: number of classes; id `classes` means none. 0 for a network without.
        text_width: channels of the text tokens that attention sees; None: without text.
        pooled_width: channels of the pooled text; as the tokens have if None.
        low_channels: of the small image's latents (`Conditioning.low`); 0 for a network without.
        widths: channels of each level, fine to coarse.
        blocks: residual blocks a level, down and again up.
        stem: side of the blocks of latents that are folded into channels first.
        attention: levels with attention after each of their residual blocks, 0 the finest. With any, there is
            a middle too, of a residual block, attention and a residual block, at the coarsest level.
        size_conditioning: whether it is told `Conditioning.size`.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        text_width: int | None,
        low_channels: int,
        widths: tuple[int, ...],
        blocks: int,
        stem: int,
        attention: tuple[int, ...] = (),
        size_conditioning: bool = False,
        pooled_width: int | None = None,
    ) -> None:
        super().__init__()
        if not set(attention) <= set(range(len(widths))):
            raise ValueError(
                f"attention {attention} names levels that are not among the {len(widths)}, from 0."
            )
        self.classes, self.stem = classes, stem
        self.multiple = stem * 2 ** (len(widths) - 1)
        """Sides are filled up to it inside."""
        condition = 4 * widths[0]
        self.time = TimeEmbedding(condition)
        self.level = TimeEmbedding(condition) if low_channels else None
        self.label = nn.Embedding(classes + 1, condition) if classes else None
        self.pooled = nn.Linear(pooled_width or text_width, condition, bias=False) if text_width else None

        self.first = nn.Conv2d((channels + low_channels) * stem**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        width = widths[0]
        for level, wide in enumerate(widths):
            if level:
                self.shrink.append(nn.Conv2d(width, wide, 2, stride=2))
                width = wide
            self.down.append(nn.ModuleList(ResidualBlock(wide, wide, condition) for _ in range(blocks)))
        for level in reversed(range(len(widths))):
            wide = widths[level]
            self.up.append(nn.ModuleList(ResidualBlock(2 * wide, wide, condition) for _ in range(blocks)))
            if level:
                self.grow.append(nn.Conv2d(wide, 4 * widths[level - 1], 1))
        self.norm = ChannelNorm(widths[0])
        self.last = nn.Conv2d(widths[0], channels * stem**2, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

        self.size = SizeEmbedding(condition) if size_conditioning else None
        seen = text_width if attention else None
        self.text = nn.Linear(seen, condition) if seen else None
        self.text_norm = Norm(seen) if seen else None
        self.null = nn.Parameter(0.02 * torch.randn(condition)) if seen else None
        told = condition if seen else None

        def looks(level: int) -> nn.ModuleList:
            count = blocks if level in attention else 0
            return nn.ModuleList(AttentionBlock(widths[level], told) for _ in range(count))

        self.down_attention = nn.ModuleList(looks(level) for level in range(len(widths)))
        self.up_attention = nn.ModuleList(looks(level) for level in reversed(range(len(widths))))
        self.middle = nn.ModuleList()
        if attention:
            first, last = (ResidualBlock(widths[-1], widths[-1], condition) for _ in range(2))
            self.middle.extend([first, AttentionBlock(widths[-1], told), last])
        self.to(memory_format=torch.channels_last)

    def forward(
        self, x: Float[Tensor, "b c h w"], c_noise: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Raw output in the space of `x`; `c_noise` is what the preconditioning makes of the time."""
        height, width = x.shape[-2:]
        if self.level is not None:
            x = with_low(x, conditioning)
        missing = (-width % self.multiple, -height % self.multiple)
        if any(missing):
            x = F.pad(x, (0, missing[0], 0, missing[1]), mode="replicate")
        condition = F.silu(self.condition(c_noise, conditioning))
        context = self.context(x.shape[0], conditioning)

        y = self.first(F.pixel_unshuffle(x, self.stem).contiguous(memory_format=torch.channels_last))
        seen = []
        for level, (blocks, looks) in enumerate(zip(self.down, self.down_attention, strict=True)):
            if level:
                y = self.shrink[level - 1](y)
            for block, look in zip_longest(blocks, looks):  # pyright: ignore[reportArgumentType]
                y = block(y, condition)
                y = y if look is None else look(y, context)
                seen.append(y)
        if len(self.middle):
            y = self.middle[0](y, condition)
            y = self.middle[2](self.middle[1](y, context), condition)
        for level, (blocks, looks) in enumerate(zip(self.up, self.up_attention, strict=True)):
            if level:
                y = F.pixel_shuffle(self.grow[level - 1](y), 2)
            for block, look in zip_longest(blocks, looks):  # pyright: ignore[reportArgumentType]
                y = block(torch.cat([y, seen.pop()], dim=1), condition)
                y = y if look is None else look(y, context)
        y = F.pixel_shuffle(self.last(F.silu(self.norm(y))), self.stem)
        return y[..., :height, :width]

    def condition(self, c_noise: Float[Tensor, " b"], conditioning: Conditioning) -> Float[Tensor, "b d"]:
        """Time, level, class, pooled text and size in one vector; an absent part adds what a dropped does."""
        condition = self.time(c_noise)
        if self.level is not None and conditioning.level is not None:
            condition = condition + self.level(conditioning.level)
        if self.label is not None:
            condition = condition + class_embedding(self.label, conditioning.label, c_noise)
        if self.pooled is not None and conditioning.pooled is not None:
            condition = condition + pooled_embedding(self.pooled, conditioning.pooled)
        if self.size is not None and conditioning.size is not None:
            condition = condition + self.size(conditioning.size)
        return condition

    def context(self, count: int, conditioning: Conditioning) -> Context:
        """The null token, then the text tokens; and which of them are real."""
        if self.text is None or self.text_norm is None or self.null is None:
            return None
        return caption_context(self.null, self.text_norm, self.text, count, conditioning)
