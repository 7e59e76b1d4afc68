"""How different two images look to people, as far as a network's features tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.autoencoders.perceptual import PerceptualLoss


class LPIPSHED(nn.Module):
    """Zhang et al., 2018, equation 1, on the VGG16 of HED instead of ImageNet's: its name keeps the figures
    apart from LPIPS proper.

    Args:
        trunk: HED's weights, as `PerceptualLoss` takes them.
        heads: the linear heads that LPIPS learned from people's judgements of a VGG16: `lin0.model.1.weight`
            to `lin4.model.1.weight`, [1, c, 1, 1].
    """

    def __init__(self, trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.trunk = PerceptualLoss(trunk, blocks=5)
        self.heads = [heads[f"lin{n}.model.1.weight"].flatten() for n in range(5)]

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Images in [-1, 1], of at least 16 px a side; 0 for equal ones."""
        return distance(self.trunk.features(images), self.trunk.features(reference), self.heads)


class LPIPSLoss(LPIPSHED):
    """The same to train with: gradients reach the images, also those of black ones."""

    def forward(
        self, images: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        with torch.no_grad():
            truth = self.trunk.features(reference)
        total = images.new_zeros(len(images))
        for x, y, head in zip(self.trunk.features(images), truth, self.heads, strict=True):
            total = total + torch.einsum("bchw,c->bhw", (_smooth(x) - _smooth(y)).square(), head.to(x)).mean(
                (1, 2)
            )
        return total


def distance(
    features: Sequence[Tensor], reference: Sequence[Tensor], heads: Sequence[Tensor]
) -> Float[Tensor, " b"]:
    """Weighted squared differences of channel vectors of length 1: mean over space, sum over layers."""
    total = features[0].new_zeros(len(features[0]))
    for x, y, head in zip(features, reference, heads, strict=True):
        difference = (_unit(x) - _unit(y)).square()
        total = total + torch.einsum("bchw,c->bhw", difference, head.to(difference)).mean((1, 2))
    return total


def _unit(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _smooth(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    # The root's derivative at 0 is infinite; that of its reciprocal beside a small number is not.
    return x * (x.square().sum(1, keepdim=True) + 1e-20).rsqrt()
