"""The deep compression autoencoder: 32 to 128 pixels a latent, as SANA has it, under diffusers' names.

Chen et al., 2024, "Deep compression autoencoder for efficient high-resolution diffusion models" (DC-AE):
space is folded into channels, and what folding alone gives is added to what each resampling has learned
(figure 4). Parameters are named as diffusers' `AutoencoderDC` names them, so that its weights load as they
are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.autoencoders.activations import ACTIVATIONS
from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.autoencoders.doubling import Doubling
from diffusion.autoencoders.efficientvit import ChannelNorm, EfficientViTBlock, norm
from diffusion.config.deep_compression import DeepCompressionAutoencoderConfig, DeepCompressionLevel
from diffusion.latents import Moments


class DeepCompressionAutoencoder(Autoencoder):
    """Residual blocks where the side is large, linear attention where it is small."""

    def __init__(self, config: DeepCompressionAutoencoderConfig, *, image_channels: int) -> None:
        super().__init__()
        self.factor = config.factor
        self.latent_channels = config.latent_channels
        self.encoder = Encoder(config, image_channels)
        self.decoder = Decoder(config, image_channels)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Moments:
        if images.shape[-1] % self.factor or images.shape[-2] % self.factor:
            raise ValueError(
                f"Images of {tuple(images.shape[-2:])} pixels: sides must be multiples of {self.factor}."
            )
        latents = self.encoder(images.contiguous(memory_format=torch.channels_last))
        return Moments(mean=latents, std=torch.zeros_like(latents))

    def decode(self, latents: Float[Tensor, "b z i j"]) -> Float[Tensor, "b c h w"]:
        return self.decoder(latents.contiguous(memory_format=torch.channels_last))


class Encoder(nn.Module):
    def __init__(self, config: DeepCompressionAutoencoderConfig, image_channels: int) -> None:
        super().__init__()
        levels, fold = config.encoder, config.down == "pixel_unshuffle"
        self.shortcut = config.encoder_shortcut

        if levels[0].blocks:
            self.conv_in = nn.Conv2d(image_channels, levels[0].channels, 3, padding=1)
        else:
            self.conv_in = Down(image_channels, levels[1].channels, fold=fold, shortcut=False)
        self.down_blocks = nn.ModuleList()
        for number, level in enumerate(levels):
            blocks = [_block(level, config.head_width) for _ in range(level.blocks)]
            if blocks and number < len(levels) - 1:
                blocks.append(Down(level.channels, levels[number + 1].channels, fold=fold))
            self.down_blocks.append(nn.ModuleList(blocks))
        self.conv_out = nn.Conv2d(levels[-1].channels, config.latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z i j"]:
        x = self.conv_in(x)
        for level in self.down_blocks:
            for block in level.children():
                x = block(x)
        z = self.conv_out(x)
        return z + _averaged(x, z.shape[1]) if self.shortcut else z


class Decoder(nn.Module):
    def __init__(self, config: DeepCompressionAutoencoderConfig, image_channels: int) -> None:
        super().__init__()
        levels, fold = config.decoder, config.up == "pixel_shuffle"
        self.shortcut = config.decoder_shortcut

        self.conv_in = nn.Conv2d(config.latent_channels, levels[-1].channels, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        for number, level in enumerate(levels):
            blocks = [_block(level, config.head_width) for _ in range(level.blocks)]
            if blocks and number < len(levels) - 1:
                blocks.insert(0, Up(levels[number + 1].channels, level.channels, fold=fold))
            self.up_blocks.append(nn.ModuleList(blocks))
        finest = levels[0] if levels[0].blocks else levels[1]
        self.norm_out = ChannelNorm(finest.channels)
        self.conv_act = ACTIVATIONS[config.last_activation]()
        if levels[0].blocks:
            self.conv_out = nn.Conv2d(finest.channels, image_channels, 3, padding=1)
        else:
            self.conv_out = Up(finest.channels, image_channels, fold=fold, shortcut=False)

    def forward(self, z: Float[Tensor, "b z i j"]) -> Float[Tensor, "b c h w"]:
        x = self.conv_in(z)
        if self.shortcut:
            x = x + _repeated(z, x.shape[1])
        for level in reversed(self.up_blocks):
            for block in level.children():
                x = block(x)
        return self.conv_out(self.conv_act(self.norm_out(x)))


class ResidualBlock(nn.Module):
    """x + norm(conv(act(conv(x))))."""

    def __init__(self, level: DeepCompressionLevel) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(level.channels, level.channels, 3, padding=1)
        self.act = ACTIVATIONS[level.activation]()
        self.conv2 = nn.Conv2d(level.channels, level.channels, 3, padding=1, bias=False)
        self.norm = norm(level.norm, level.channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.norm(self.conv2(self.act(self.conv1(x))))


class Down(nn.Module):
    """Halves the side. The shortcut folds 2x2 places into channels and averages groups of them."""

    def __init__(self, inputs: int, outputs: int, *, fold: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.outputs, self.fold, self.shortcut = outputs, fold, shortcut
        self.conv = nn.Conv2d(inputs, outputs // 4 if fold else outputs, 3, 1 if fold else 2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = self.conv(x)
        if self.fold:
            y = F.pixel_unshuffle(y, 2)
        return y + _averaged(F.pixel_unshuffle(x, 2), self.outputs) if self.shortcut else y


class Up(nn.Module):
    """Doubles the side. The shortcut repeats channels and unfolds them into 2x2 places."""

    def __init__(self, inputs: int, outputs: int, *, fold: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.outputs, self.fold, self.shortcut = outputs, fold, shortcut
        self.doubling = Doubling()
        self.conv = nn.Conv2d(inputs, 4 * outputs if fold else outputs, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = F.pixel_shuffle(self.conv(x), 2) if self.fold else self.conv(self.doubling(x))
        return y + F.pixel_shuffle(_repeated(x, 4 * self.outputs), 2) if self.shortcut else y


def _block(level: DeepCompressionLevel, head_width: int) -> nn.Module:
    if level.attention:
        return EfficientViTBlock(level.channels, head_width, level.scales, level.norm)
    return ResidualBlock(level)


def _averaged(x: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b d h w"]:
    return x.unflatten(1, (channels, -1)).mean(dim=2)


def _repeated(x: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b d h w"]:
    return x.repeat_interleave(channels // x.shape[1], dim=1, output_size=channels)
