"""What a network is told beside the latents, as vectors and as context tokens."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.conditioning import Conditioning


def angular_frequencies(count: int) -> Float[Tensor, " count"]:
    """Angular frequencies from 1 down towards 1e-4, evenly in their logarithm (Vaswani et al., 2017)."""
    return torch.exp(-math.log(10_000.0) * torch.arange(count) / count)


class TimeEmbedding(nn.Module):
    """Sines and cosines of `scale` * c_noise, then a two-layer perceptron (Peebles & Xie, 2023)."""

    frequencies: Tensor

    def __init__(self, width: int, *, frequencies: int = 128, scale: float = 1000.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", angular_frequencies(frequencies), persistent=False)
        self.net = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, c_noise: Float[Tensor, " b"]) -> Float[Tensor, "b w"]:
        angles = self.scale * c_noise[:, None] * self.frequencies
        return self.net(torch.cat([angles.cos(), angles.sin()], dim=-1))


class SizeEmbedding(nn.Module):
    """Sines and cosines of each of six lengths in px, together through a two-layer perceptron (Podell et al.,
    2023, "SDXL", section 2.2). Zero at first, and of a sample whose six are zero."""

    frequencies: Tensor

    def __init__(self, width: int, *, frequencies: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", angular_frequencies(frequencies), persistent=False)
        self.net = nn.Sequential(nn.Linear(12 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        for parameter in self.net[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, size: Float[Tensor, "b 6"]) -> Float[Tensor, "b w"]:
        angles = size[..., None] * self.frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)
        told = self.net(features.to(self.frequencies.dtype))
        return told * size.any(dim=1, keepdim=True)


def class_embedding(
    table: nn.Embedding, label: Int[Tensor, " b"] | None, like: Float[Tensor, " b"]
) -> Float[Tensor, "b w"]:
    """Of each sample's class; the table's last row stands for none."""
    if label is None:
        label = torch.full(like.shape, table.num_embeddings - 1, device=like.device)
    return table(label)


def pooled_embedding(layer: nn.Linear, pooled: Float[Tensor, "b e"]) -> Float[Tensor, "b w"]:
    """Of the pooled text. Encoders give unit vectors, which would weigh little beside the time; a dropped one
    stays zero."""
    return layer(F.rms_norm(pooled, pooled.shape[-1:]))


def caption_context(
    null: Float[Tensor, " w"], norm: nn.Module, layer: nn.Linear, count: int, conditioning: Conditioning
) -> tuple[Float[Tensor, "b m w"], Bool[Tensor, "b m"]]:
    """The null token, then the caption's; and which of them are real. `count` is the batch size."""
    first = null.expand(count, 1, -1)
    seen = torch.ones(count, 1, dtype=torch.bool, device=null.device)
    if conditioning.text is None or conditioning.mask is None:
        return first, seen
    text = layer(norm(conditioning.text))
    return torch.cat([first, text], dim=1), torch.cat([seen, conditioning.mask], dim=1)


def with_low(x: Float[Tensor, "b c h w"], conditioning: Conditioning) -> Float[Tensor, "b both h w"]:
    """`x`, then the small image's latents, along channels. `ValueError` where an upscaler is given none."""
    if conditioning.low is None:
        raise ValueError("An upscaler needs the small image: give Conditioning.low.")
    return torch.cat([x, conditioning.low.to(x.dtype)], dim=1)
