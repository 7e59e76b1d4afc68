"""The classifier that judges: small, so that many can be trained, and without batch statistics."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

PLACES = 4
"""Side of the grid of features that the last layer reads: where a feature is says what it belongs to."""


class Classifier(nn.Module):
    """Three 3x3 convolutions with group norm and ReLU, the last two behind 2x2 pooling, and a linear layer.

    Blocks of 2x2 px are folded into channels first, which makes a step four times as cheap. Group norm (Wu
    and He, 2018) instead of batch norm: a batch that mixes real and generated images would normalise each by
    the other, and the arms could differ by that alone.
    """

    def __init__(self, *, classes: int, width: int, size: int) -> None:
        """`width` channels at half the images' side, twice and four times as many below; a multiple of 8.

        `size` is the images' side in px, a multiple of 8.
        """
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        channels = 12
        for level in range(3):
            out = width * 2**level
            layers += [
                *([nn.MaxPool2d(2)] if level else []),
                nn.Conv2d(channels, out, 3, padding=1, bias=False),
                nn.GroupNorm(8, out),
                nn.ReLU(inplace=True),
            ]
            channels = out
        places = min(PLACES, size // 8)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(places))
        self.head = nn.Linear(channels * places**2, classes)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits of images in [-1, 1]."""
        return self.head(self.features(images).flatten(1))
