"""A small convolutional autoencoder with a Gaussian posterior, built to be fast on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.autoencoders.autoencoder import Autoencoder
from diffusion.latents import Moments


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the identity at first.

    Without normalisation over space, so that an output pixel depends on its surroundings only and an image
    decoded in overlapping tiles is the image decoded whole.
    """

    repeated = True
    """Its matrices are Muon's (`diffusion.optimizers.hidden_matrices`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class KLAutoencoder(Autoencoder):
    """Rombach et al., 2022, section 3.1, without attention, norms or full-resolution layers.

    Pixels are first folded into channels (`stem` x `stem` of them), because convolutions at full resolution
    are most of what a usual autoencoder costs; each further level halves the side. The factor is
    stem * 2 ** (levels - 1).

    Args:
        channels: of each level, from fine to coarse.
        blocks: residual blocks a level in the encoder; the decoder has one more.
    """

    def __init__(
        self, *, image_channels: int, latent_channels: int, channels: tuple[int, ...], stem: int, blocks: int
    ) -> None:
        super().__init__()
        self.factor = stem * 2 ** (len(channels) - 1)
        self.latent_channels = latent_channels
        self.reach = _reach(len(channels), stem=stem, blocks=blocks)

        down: list[nn.Module] = [
            nn.PixelUnshuffle(stem),
            nn.Conv2d(image_channels * stem**2, channels[0], 3, padding=1),
        ]
        for level, width in enumerate(channels):
            if level:
                down.append(nn.Conv2d(channels[level - 1], width, 4, stride=2, padding=1))
            down.extend(ResidualBlock(width) for _ in range(blocks))
        self.encoder = nn.Sequential(*down, nn.SiLU(), nn.Conv2d(channels[-1], 2 * latent_channels, 1))

        up: list[nn.Module] = [nn.Conv2d(latent_channels, channels[-1], 3, padding=1)]
        for level in reversed(range(len(channels))):
            up.extend(ResidualBlock(channels[level]) for _ in range(blocks + 1))
            if level:
                up += [nn.Conv2d(channels[level], 4 * channels[level - 1], 1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(
            *up,
            nn.SiLU(),
            nn.Conv2d(channels[0], image_channels * stem**2, 3, padding=1),
            nn.PixelShuffle(stem),
        )

    def encode(self, images: Float[Tensor, "b c h w"]) -> Moments:
        if images.shape[-1] % self.factor or images.shape[-2] % self.factor:
            raise ValueError(
                f"Images of {tuple(images.shape[-2:])} pixels: sides must be multiples of {self.factor}."
            )
        mean, log_variance = self.encoder(images.contiguous(memory_format=torch.channels_last)).chunk(
            2, dim=1
        )
        # Bounds keep the KL term finite while the encoder is still wild (Rombach et al., code).
        return Moments(mean=mean, std=torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)))

    def decode(self, latents: Float[Tensor, "b z i j"]) -> Float[Tensor, "b c h w"]:
        return self.decoder(latents.contiguous(memory_format=torch.channels_last))


def _reach(levels: int, *, stem: int, blocks: int) -> tuple[int, int]:
    """How far the layers see, counted backwards in cells of each level: a convolution of 3 sees one cell
    beside, one of 4 with stride 2 one of the finer level's."""
    encoder = decoder = 0
    for level in reversed(range(levels)):
        encoder += 2 * blocks
        encoder = 2 * encoder + 1 if level else encoder + 1
    for level in range(levels):
        decoder += 2 * (blocks + 1) + (not level)
        decoder = -(-decoder // 2) if level + 1 < levels else decoder
    return stem * encoder, decoder + 1


def kl_divergence(moments: Moments) -> Float[Tensor, " b"]:
    """KL(N(mean, std^2) || N(0, 1)) in nats, summed over a sample (Kingma & Welling, 2014, appendix B).

    Elements without spread, as deterministic autoencoders have them, count nothing: theirs would be infinite.
    """
    spread = moments.std > 0
    variance = moments.std.square()
    # The logarithm of what is left out must be finite too, or its gradient is not.
    log = torch.where(spread, variance, 1.0).log()
    nats = 0.5 * (moments.mean.square() + variance - 1.0 - log)
    return torch.where(spread, nats, 0.0).flatten(1).sum(dim=1)
