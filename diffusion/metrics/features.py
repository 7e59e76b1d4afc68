"""What an evaluator sees of an image: features of EfficientNet-Lite0, trained on ImageNet-1k.

Liu, 2020, "Higher accuracy on vision models with EfficientNet-Lite": EfficientNet-B0 (Tan and Le, 2019,
Table 1) without squeeze-and-excitation and with ReLU6. It stands in for the Inception network where that one
cannot be had; metrics that use it carry its name (KID-EffLite0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SIZE = 224
"""Pixels a side that the network was trained at."""

_EPSILON = 1e-3
"""Of its batch normalisations."""

_STAGES = (
    # repeats, channels, kernel, stride of the first, expansion
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)

_MAPS = (0, 2, 4, 10)
"""Blocks whose outputs are the deepest of their size, but for the smallest."""


def resize(images: Float[Tensor, "b c h w"], size: int = SIZE) -> Float[Tensor, "b c {size} {size}"]:
    """Images in [0, 1] to `size` pixels square: bicubic, antialiased when shrinking, clipped to [0, 1]."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp_(0, 1)


class EfficientNetLite0(nn.Module):
    """Frozen classifier of 4.7 M parameters with its batch normalisations folded into the convolutions.

    Folding, channels-last memory and the padding of `_Convolution` make it about three times as fast on a CPU
    as the published modules; outputs agree within 2e-5. Batches of 4 to 16 are fastest, as the cache
    holds them. Gradients reach the images, not the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """`weights`: a state dict of `efficientnet-lite-pytorch` (`_conv_stem.weight`, ...), its Lite0.

        Random weights, seeded, if None. Raises `ValueError` if the weights are another network's.
        """
        super().__init__()
        weights = _random() if weights is None else weights
        state = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
        expected = dict(_shapes())
        if {name: tuple(value.shape) for name, value in state.items()} != expected:
            raise ValueError("These weights are not those of efficientnet-lite-pytorch's Lite0.")

        self.stem = _Convolution(*_folded(state, "_conv_stem", "_bn0"), stride=2, groups=1)
        self.blocks = nn.ModuleList(_Block(state, layer) for layer in _layers())
        self.head = _Convolution(*_folded(state, "_conv_head", "_bn1"))
        self.classifier = nn.Linear(1280, 1000)
        self.classifier.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)

    def features(self, images: Float[Tensor, "b 3 224 224"]) -> Float[Tensor, "b 1280"]:
        """Pooled features of images in [0, 1]; `resize` brings others to 224 pixels."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = _relu6(self.stem((x - self.mean) / self.std))
        for block in self.blocks:
            x = block(x)
        return _relu6(self.head(x)).mean((2, 3))

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Feature maps of images in [0, 1] of any size, at 1/2, 1/4, 1/8 and 1/16 of their side."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = _relu6(self.stem((x - self.mean) / self.std))
        found = []
        for block in self.blocks[: max(_MAPS) + 1]:
            x = block(x)
            found.append(x)
        return [found[n] for n in _MAPS]

    def logits(self, images: Float[Tensor, "b 3 224 224"]) -> Float[Tensor, "b 1000"]:
        """Scores of the ImageNet-1k classes, in the order of their WordNet ids, before softmax."""
        return self.classifier(self.features(images))

    def forward(self, images: Float[Tensor, "b 3 224 224"]) -> Float[Tensor, "b 1280"]:
        return self.features(images)


class _Layer(NamedTuple):
    """Depthwise-separable layer number `number`, as the stages above spell it out."""

    number: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    expansion: int

    @property
    def hidden(self) -> int:
        return self.inputs * self.expansion


class _Convolution(nn.Module):
    """TensorFlow's "same" padding without a padded copy of the input.

    At stride 2 on an even size that pads one more pixel behind than in front. A kernel with a row and a
    column of zeros put before it does the same with equal padding on both sides.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.padding = weight.shape[-1] // 2
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(F.pad(weight, (1, 0, 1, 0)) if stride == 2 else weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)


class _Block(nn.Module):
    """Inverted residual (Sandler et al., 2018): expand, convolve each channel, project."""

    def __init__(self, state: Mapping[str, Tensor], layer: _Layer) -> None:
        super().__init__()
        name = f"_blocks.{layer.number}."
        self.residual = layer.stride == 1 and layer.inputs == layer.outputs
        self.expand = (
            _Convolution(*_folded(state, name + "_expand_conv", name + "_bn0"))
            if layer.expansion > 1
            else None
        )
        depthwise = _folded(state, name + "_depthwise_conv", name + "_bn1")
        self.depthwise = _Convolution(*depthwise, stride=layer.stride, groups=layer.hidden)
        self.project = _Convolution(*_folded(state, name + "_project_conv", name + "_bn2"))

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else _relu6(self.expand(x))
        y = self.project(_relu6(self.depthwise(y)))
        return y + x if self.residual else y


def _relu6(x: Tensor) -> Tensor:
    # In place where no gradient needs the input: at 112 pixels a second buffer costs more than the clipping.
    return x.clamp(0, 6) if x.requires_grad else x.clamp_(0, 6)


def _folded(state: Mapping[str, Tensor], convolution: str, normalisation: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution and the batch normalisation after it, as one."""
    n = normalisation + "."
    scale = state[n + "weight"].double() / (state[n + "running_var"].double() + _EPSILON).sqrt()
    weight = state[convolution + ".weight"].double() * scale[:, None, None, None]
    bias = state[n + "bias"].double() - state[n + "running_mean"].double() * scale
    return weight.float(), bias.float()


def _layers() -> list[_Layer]:
    layers, inputs = [], 32
    for repeats, outputs, kernel, first, expansion in _STAGES:
        for repeat in range(repeats):
            stride = first if repeat == 0 else 1
            layers.append(_Layer(len(layers), inputs, outputs, kernel, stride, expansion))
            inputs = outputs
    return layers


def _shapes() -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the published state dict."""
    convolutions = [("_conv_stem", "_bn0", (32, 3, 3, 3)), ("_conv_head", "_bn1", (1280, 320, 1, 1))]
    for layer in _layers():
        name, hidden = f"_blocks.{layer.number}.", layer.hidden
        if layer.expansion > 1:
            convolutions.append((name + "_expand_conv", name + "_bn0", (hidden, layer.inputs, 1, 1)))
        convolutions.append(
            (name + "_depthwise_conv", name + "_bn1", (hidden, 1, layer.kernel, layer.kernel))
        )
        convolutions.append((name + "_project_conv", name + "_bn2", (layer.outputs, hidden, 1, 1)))

    shapes: list[tuple[str, tuple[int, ...]]] = [("_fc.weight", (1000, 1280)), ("_fc.bias", (1000,))]
    for convolution, normalisation, shape in convolutions:
        shapes.append((convolution + ".weight", shape))
        statistics = ("weight", "bias", "running_mean", "running_var")
        shapes += [(f"{normalisation}.{name}", shape[:1]) for name in statistics]
    return shapes


def _random() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in _shapes():
        if name.endswith(("running_var", "weight")) and len(shape) == 1:
            state[name] = torch.ones(shape)
        elif len(shape) == 1:
            state[name] = torch.zeros(shape)
        else:
            fan_in = torch.Size(shape[1:]).numel()
            state[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
    return state
