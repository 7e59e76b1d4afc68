"""A convolutional network at several scales, for latents or pixels of any size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.conditioning import Conditioning
from diffusion.networks.embeddings import TimeEmbedding, class_embedding, pooled_embedding, with_low


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


class UNet(nn.Module):
    """Ronneberger et al., 2015, with the residual blocks of Dhariwal & Nichol, 2021; no attention.

    The time, the class, the pooled text and the level of noise in the small image modulate every block; the
    small image's latents are concatenated to the input (Saharia et al., 2021, "SR3"). The output of a new
    network is zero everywhere.

    Args:
        channels: of the latents, in and out.
        classes: number of classes; id `classes` means none. 0 for a network without.
        text_width: channels of the pooled text; None for a network without.
        low_channels: of the small image's latents (`Conditioning.low`); 0 for a network without.
        widths: channels of each level, fine to coarse.
        blocks: residual blocks a level, down and again up.
        stem: side of the blocks of latents that are folded into channels first.
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
    ) -> None:
        super().__init__()
        self.classes, self.stem = classes, stem
        self.multiple = stem * 2 ** (len(widths) - 1)
        """Sides are filled up to it inside."""
        condition = 4 * widths[0]
        self.time = TimeEmbedding(condition)
        self.level = TimeEmbedding(condition) if low_channels else None
        self.label = nn.Embedding(classes + 1, condition) if classes else None
        self.pooled = nn.Linear(text_width, condition, bias=False) if text_width else None

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

        y = self.first(F.pixel_unshuffle(x, self.stem).contiguous(memory_format=torch.channels_last))
        seen = []
        for level, blocks in enumerate(self.down):
            if level:
                y = self.shrink[level - 1](y)
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                y = block(y, condition)
                seen.append(y)
        for level, blocks in enumerate(self.up):
            if level:
                y = F.pixel_shuffle(self.grow[level - 1](y), 2)
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                y = block(torch.cat([y, seen.pop()], dim=1), condition)
        y = F.pixel_shuffle(self.last(F.silu(self.norm(y))), self.stem)
        return y[..., :height, :width]

    def condition(self, c_noise: Float[Tensor, " b"], conditioning: Conditioning) -> Float[Tensor, "b d"]:
        """Time, level, class and pooled text in one vector; an absent part adds what a dropped one adds."""
        condition = self.time(c_noise)
        if self.level is not None and conditioning.level is not None:
            condition = condition + self.level(conditioning.level)
        if self.label is not None:
            condition = condition + class_embedding(self.label, conditioning.label, c_noise)
        if self.pooled is not None and conditioning.pooled is not None:
            condition = condition + pooled_embedding(self.pooled, conditioning.pooled)
        return condition
