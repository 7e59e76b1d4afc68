"""The autoencoder of latent diffusion: that of Stable Diffusion 1 to 3 and FLUX, under diffusers' names.

Rombach et al., 2022, "High-resolution image synthesis with latent diffusion models", section 3.1, whose
network is that of Esser et al., 2021 (VQGAN) with a Gaussian posterior in place of the codebook. Parameters
are named as diffusers' `AutoencoderKL` names them, so that its weights load as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.autoencoders.doubling import Doubling
from diffusion.latents import Moments


class SpatialAutoencoder(Autoencoder):
    """Residual blocks with group norms, and attention where the side is smallest.

    Args:
        channels: of each level, from fine to coarse; each level after the first halves the side.
        blocks: residual blocks a level in the encoder; the decoder has one more.
        groups: of channels that are normalised together.
        middle_attention: whether all places of the coarsest level look at each other.
        attention: levels in which they do so after every residual block.
        quant_conv, post_quant_conv: 1x1 convolutions after the encoder and before the decoder.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        latent_channels: int,
        channels: tuple[int, ...],
        blocks: int,
        groups: int,
        middle_attention: bool = True,
        attention: tuple[int, ...] = (),
        quant_conv: bool = True,
        post_quant_conv: bool = True,
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(channels) - 1)
        self.latent_channels = latent_channels

        attends = tuple(level in attention for level in range(len(channels)))
        self.encoder = Encoder(
            image_channels, 2 * latent_channels, channels, blocks, groups, attends, middle_attention
        )
        self.decoder = Decoder(
            latent_channels, image_channels, channels, blocks + 1, groups, attends, middle_attention
        )
        moments = 2 * latent_channels
        self.quant_conv = nn.Conv2d(moments, moments, 1) if quant_conv else nn.Identity()
        self.post_quant_conv = (
            nn.Conv2d(latent_channels, latent_channels, 1) if post_quant_conv else nn.Identity()
        )

    def encode(self, images: Float[Tensor, "b c h w"]) -> Moments:
        if images.shape[-1] % self.factor or images.shape[-2] % self.factor:
            raise ValueError(
                f"Images of {tuple(images.shape[-2:])} pixels: sides must be multiples of {self.factor}."
            )
        images = images.contiguous(memory_format=torch.channels_last)
        mean, log_variance = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        # The bounds that the weights were trained with (Rombach et al., code).
        return Moments(mean=mean, std=torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)))

    def decode(self, latents: Float[Tensor, "b z i j"]) -> Float[Tensor, "b c h w"]:
        latents = latents.contiguous(memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(latents))


class Encoder(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        channels: tuple[int, ...],
        blocks: int,
        groups: int,
        attends: tuple[bool, ...],
        middle_attention: bool,
    ) -> None:
        super().__init__()
        coarsest = channels[-1]
        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(channels):
            before, last = channels[max(level - 1, 0)], level == len(channels) - 1
            down = None if last else Down(width)
            self.down_blocks.append(Level(before, width, blocks, groups, attends[level], down=down))
        self.mid_block = Middle(coarsest, groups, middle_attention)
        self.conv_norm_out = nn.GroupNorm(groups, coarsest, eps=1e-6)
        self.conv_out = nn.Conv2d(coarsest, outputs, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z i j"]:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        channels: tuple[int, ...],
        blocks: int,
        groups: int,
        attends: tuple[bool, ...],
        middle_attention: bool,
    ) -> None:
        super().__init__()
        finest, coarsest = channels[0], channels[-1]
        self.conv_in = nn.Conv2d(inputs, coarsest, 3, padding=1)
        self.mid_block = Middle(coarsest, groups, middle_attention)
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(channels))):
            before, width = channels[min(level + 1, len(channels) - 1)], channels[level]
            up = Up(width) if level else None
            self.up_blocks.append(Level(before, width, blocks, groups, attends[level], up=up))
        self.conv_norm_out = nn.GroupNorm(groups, finest, eps=1e-6)
        self.conv_out = nn.Conv2d(finest, outputs, 3, padding=1)

    def forward(self, z: Float[Tensor, "b z i j"]) -> Float[Tensor, "b c h w"]:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Level(nn.Module):
    """Residual blocks of one resolution, and the way to the next."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        groups: int,
        attends: bool,
        *,
        down: Down | None = None,
        up: Up | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(outputs if n else inputs, outputs, groups) for n in range(blocks)
        )
        self.attentions = nn.ModuleList(Attention(outputs, groups) for _ in range(blocks if attends else 0))
        self.downsamplers = nn.ModuleList([down] if down else [])
        self.upsamplers = nn.ModuleList([up] if up else [])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        for number, block in enumerate(self.resnets):
            x = block(x)
            if self.attentions:
                x = self.attentions[number](x)
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attends else [])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        first, second = self.resnets
        x = first(x)
        for attention in self.attentions:
            x = attention(x)
        return second(x)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), x widened by a 1x1 convolution where the widths differ."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """All places look at each other, with one head as wide as the channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        places = self.group_norm(x).flatten(2).transpose(1, 2).unsqueeze(1)
        q, k, v = self.to_q(places), self.to_k(places), self.to_v(places)
        y = self.to_out(F.scaled_dot_product_attention(q, k, v))
        return x + y.squeeze(1).transpose(1, 2).unflatten(2, x.shape[-2:])


class Down(nn.Module):
    """Halves the side; padded right and below alone, as the weights were trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Doubles the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.doubling = Doubling()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        return self.conv(self.doubling(x))
