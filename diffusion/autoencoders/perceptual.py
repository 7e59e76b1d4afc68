"""How different two images look, by the first blocks of a VGG16, or by the features of any network.

Zhang et al., 2018, "The unreasonable effectiveness of deep features as a perceptual metric", equation 1 with
w = 1: without the linear heads that LPIPS has learned, so it is a training loss and not that metric. The
weights at hand are a VGG16 fine-tuned to find edges (HED; Xie and Tu, 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Of each block of a VGG16."""


class PerceptualLoss(nn.Module):
    """Frozen; gradients reach the images.

    At 48 px the first block costs 0.09 G multiplications an image and the second 0.13 G more, about twice
    that with the gradient; the deeper ones see little of images that small.
    """

    mean: Tensor

    def __init__(self, weights: Mapping[str, Tensor], *, blocks: int = 2) -> None:
        """`weights`: HED's under Keras' names, "block1.conv2d.weight", "block1.conv2d_1.bias", ...

        `ValueError` if `blocks` is not 1 to 5 or the weights lack one of their convolutions.
        """
        super().__init__()
        if not 1 <= blocks <= len(_CONVOLUTIONS):
            raise ValueError(f"blocks is {blocks}; a VGG16 has 1 to {len(_CONVOLUTIONS)}.")
        self.blocks = nn.ModuleList(_block(weights, n + 1, _CONVOLUTIONS[n]) for n in range(blocks))
        # Blue, green, red, in [0, 255]: the mean of ImageNet as Caffe's networks take it off.
        self.register_buffer("mean", torch.tensor([104.00699, 116.66877, 122.67892]).reshape(1, 3, 1, 1))
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Images in [-1, 1] -> what each block gives, each half as large as the one before."""
        x = (images.flip(1) + 1) * 127.5 - self.mean
        x = x.contiguous(memory_format=torch.channels_last)
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x if number == 0 else F.max_pool2d(x, 2, ceil_mode=True))
            found.append(x)
        return found

    def forward(
        self, images: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Distance of each image from its reference, both in [-1, 1]; 0 to 4, the mean over blocks.

        Squared distance of the channel vectors, scaled to length 1, averaged over space. No gradient is kept
        for `reference`.
        """
        with torch.no_grad():
            truth = self.features(reference)
        distances = [_distance(x, y) for x, y in zip(self.features(images), truth, strict=True)]
        return torch.stack(distances).mean(0)


class FeatureDistance(nn.Module):
    """The same by any network: squared distance of channel vectors of length 1, averaged over space and
    layers."""

    def __init__(self, features: Callable[[Float[Tensor, "b 3 h w"]], Sequence[Float[Tensor, "b _ _ _"]]]):
        """`features`: of images in [-1, 1], one map a layer; a frozen module, or a function."""
        super().__init__()
        self.features = features

    def forward(
        self, images: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Distance of each image from its reference, both in [-1, 1]; 0 to 4. No gradient is kept for
        `reference`."""
        with torch.no_grad():
            truth = self.features(reference)
        distances = [_distance(x, y) for x, y in zip(self.features(images), truth, strict=True)]
        return torch.stack(distances).mean(0)


def _block(weights: Mapping[str, Tensor], number: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in range(convolutions):
        name = f"block{number}.conv2d" + (f"_{n}" if n else "")
        if f"{name}.weight" not in weights or f"{name}.bias" not in weights:
            raise ValueError(f"The weights lack {name}: they are not those of HED's VGG16.")
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _distance(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    # |x - y|^2 = 2 - 2 x.y for vectors of length 1: the cosine makes no copy of the features.
    silent = (x.square().sum(1) < 1e-10) & (y.square().sum(1) < 1e-10)
    return (2 - 2 * F.cosine_similarity(x, y, dim=1, eps=1e-5)).masked_fill(silent, 0).mean((1, 2))
