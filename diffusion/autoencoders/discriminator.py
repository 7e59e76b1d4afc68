"""A network that tells patches of images from patches of reconstructions, and what both sides lose by it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Contest = Literal["hinge", "non_saturating"]
GROUPS = 32
_LAST = torch.channels_last


class PatchDiscriminator(nn.Module):
    """Convolutions of 4 whose logits each see one patch (Isola et al., 2017, appendix 6.1.2).

    Normalised over a sample's groups of channels instead of over the batch: a logit then depends neither on
    the other images nor on how these are dealt out to workers.

    Args:
        layers: convolutions that halve the side; two more keep it.
    """

    def __init__(self, *, image_channels: int, channels: int, layers: int, norm: bool) -> None:
        super().__init__()
        widths = [min(2**n, 8) * channels for n in range(layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(image_channels, widths[0], 4, stride=2, padding=1)]
        for n in range(1, layers + 1):
            body.append(nn.LeakyReLU(0.2))
            stride = 2 if n < layers else 1
            body.append(nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=not norm))
            if norm:
                body.append(nn.GroupNorm(_groups(widths[n]), widths[n]))
        self.smallest = 3 * 2**layers
        """Pixels a side below which no logit is left."""
        self.body = nn.Sequential(
            *body, nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1)
        ).to(memory_format=_LAST)
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 i j"]:
        """Images in [-1, 1] -> logits, above 0 for patches that look like those of images.

        `ValueError` for images of fewer than `smallest` px a side.
        """
        self.check(images.shape[-1], images.shape[-2])
        return self.body(images.contiguous(memory_format=_LAST))

    def check(self, width: int, height: int) -> None:
        """`ValueError` for images of fewer than `smallest` px a side."""
        if min(width, height) < self.smallest:
            raise ValueError(
                f"Images of {width} x {height} px are too small for the discriminator, which takes "
                f"{self.smallest} px: set its `layers` lower."
            )


def contest(
    kind: Contest, real: Float[Tensor, "b 1 i j"], made: Float[Tensor, "b 1 i j"]
) -> Float[Tensor, " b"]:
    """What the discriminator loses by its logits for images and for reconstructions: mean over patches.

    `hinge` (Lim and Ye, 2017) or the cross-entropy, half each as in Esser et al., 2021.
    """
    if kind == "hinge":
        lost = F.relu(1 - real.float()) + F.relu(1 + made.float())
    else:
        lost = F.softplus(-real.float()) + F.softplus(made.float())
    return 0.5 * lost.flatten(1).mean(1)


def deception(kind: Contest, made: Float[Tensor, "b 1 i j"]) -> Float[Tensor, " b"]:
    """What the autoencoder loses where its reconstructions are told: -logit for `hinge`, or the
    non-saturating loss of Goodfellow et al., 2014; mean over patches."""
    logits = made.float().flatten(1)
    return (-logits if kind == "hinge" else F.softplus(-logits)).mean(1)


def _groups(channels: int) -> int:
    return next(n for n in range(min(GROUPS, channels), 0, -1) if channels % n == 0)
