"""A tiny autoencoder: TAESD and its kin, under diffusers' names.

Boer Bohan, 2023, "Tiny AutoEncoder for Stable Diffusion" (github.com/madebyollin/taesd): the encoder and the
decoder of a large autoencoder distilled into convolutions of 64 channels. Parameters are named as diffusers'
`AutoencoderTiny` names them, so that its weights load as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.autoencoders.activations import ACTIVATIONS
from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.autoencoders.doubling import Doubling
from diffusion.latents import Moments


class TinyAutoencoder(Autoencoder):
    """Residual blocks of three convolutions, without norms and without attention.

    The layers work on images in [0, 1]. Latents have about unit variance: what a network sees of the large
    autoencoder's after scaling. The decoder bends them softly into [-3, 3].

    Args:
        encoder_blocks: residual blocks of each level, from fine to coarse.
        decoder_blocks: residual blocks of each level, from coarse to fine.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        latent_channels: int,
        encoder_channels: int,
        decoder_channels: int,
        encoder_blocks: tuple[int, ...],
        decoder_blocks: tuple[int, ...],
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(encoder_blocks) - 1)
        self.latent_channels = latent_channels
        self.reach = _reach(encoder_blocks, decoder_blocks)

        width = encoder_channels
        down: list[nn.Module] = []
        for level, blocks in enumerate(encoder_blocks):
            halving = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            down.append(halving if level else nn.Conv2d(image_channels, width, 3, padding=1))
            down.extend(ResidualBlock(width, activation) for _ in range(blocks))
        self.encoder = Layers([*down, nn.Conv2d(width, latent_channels, 3, padding=1)])

        width = decoder_channels
        up: list[nn.Module] = [nn.Conv2d(latent_channels, width, 3, padding=1), ACTIVATIONS[activation]()]
        for level, blocks in enumerate(decoder_blocks):
            up.extend(ResidualBlock(width, activation) for _ in range(blocks))
            if level < len(decoder_blocks) - 1:
                up += [Doubling(), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.decoder = Layers([*up, nn.Conv2d(width, image_channels, 3, padding=1)])

    def encode(self, images: Float[Tensor, "b c h w"]) -> Moments:
        if images.shape[-1] % self.factor or images.shape[-2] % self.factor:
            raise ValueError(
                f"Images of {tuple(images.shape[-2:])} pixels: sides must be multiples of {self.factor}."
            )
        latents = self.encoder((images.contiguous(memory_format=torch.channels_last) + 1) / 2)
        return Moments(mean=latents, std=torch.zeros_like(latents))

    def decode(self, latents: Float[Tensor, "b z i j"]) -> Float[Tensor, "b c h w"]:
        bounded = 3 * torch.tanh(latents.contiguous(memory_format=torch.channels_last) / 3)
        return 2 * self.decoder(bounded) - 1


class Layers(nn.Module):
    """One after the other; a list, so that blocks can be compiled each for itself."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        for layer in self.layers:
            x = layer(x)
        return x


class ResidualBlock(nn.Module):
    """relu(x + three convolutions of x)."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(channels, channels, 3, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.relu(x + self.conv(x))


def _reach(encoder_blocks: tuple[int, ...], decoder_blocks: tuple[int, ...]) -> tuple[int, int]:
    """How far the layers see, counted backwards in cells of each level: a convolution of 3 sees one cell
    beside, and with stride 2 one of the finer level's; a cell that is repeated is seen by half as many."""
    encoder = decoder = 1
    for level in reversed(range(len(encoder_blocks))):
        encoder += 3 * encoder_blocks[level]
        encoder = 2 * encoder + 1 if level else encoder + 1
    for level in reversed(range(len(decoder_blocks))):
        decoder += 3 * decoder_blocks[level] + 1
        decoder = -(-decoder // 2) if level else decoder
    return encoder, decoder
