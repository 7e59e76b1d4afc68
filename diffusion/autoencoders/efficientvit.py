"""The block with which EfficientViT looks at a whole image at a cost linear in its places.

Cai et al., 2023, "EfficientViT: multi-scale linear attention for high-resolution dense prediction", section
3.2; the gated convolution is that of Xie et al., 2024 (SANA). Parameters have diffusers' names.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.Module):
    """Channels over their root mean square, place by place, with scale and bias (Zhang & Sennrich, 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        # Autocast leaves the scale in fp32, and of two dtypes torch makes no single kernel.
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return (F.rms_norm(x.movedim(1, -1), weight.shape, weight, 1e-5) + bias).movedim(-1, 1)


class FixedBatchNorm(nn.BatchNorm2d):
    """Batch norm (Ioffe & Szegedy, 2015) by the statistics that came with the weights, in training too.

    An image's latent would otherwise depend on the others in its batch, and the statistics on the number of
    workers; neither averages of weights nor checkpoints would hold them.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:  # noqa: A002
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def norm(kind: str, channels: int) -> ChannelNorm | FixedBatchNorm:
    """`kind`: "rms" or "batch"."""
    return ChannelNorm(channels) if kind == "rms" else FixedBatchNorm(channels)


class EfficientViTBlock(nn.Module):
    """Linear attention, then a gated convolution; both beside the identity.

    Args:
        head_width: channels of an attention head.
        scales: sides of the neighbourhoods over which further queries, keys and values are mixed.
    """

    def __init__(self, channels: int, head_width: int, scales: tuple[int, ...], kind: str) -> None:
        super().__init__()
        self.attn = LinearAttention(channels, head_width, scales, kind)
        self.conv_out = GatedConvolution(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.conv_out(self.attn(x))


class LinearAttention(nn.Module):
    """x + norm(W y), where y = V relu(K)^T relu(q) / (1^T relu(K)^T relu(q)) a place and head.

    Queries, keys and values are taken at each place, and once more from mixing them over each neighbourhood.
    """

    def __init__(self, channels: int, head_width: int, scales: tuple[int, ...], kind: str) -> None:
        super().__init__()
        self.head_width = head_width
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(
            Mixing(3 * channels, scale, groups=3 * channels // head_width) for scale in scales
        )
        self.to_out = nn.Linear(channels * (1 + len(scales)), channels, bias=False)
        self.norm_out = norm(kind, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        qkv = F.linear(x.movedim(1, -1), weight).movedim(-1, 1)
        qkv = torch.cat([qkv, *(mix(qkv) for mix in self.to_qkv_multiscale)], dim=1)
        # Sums over all places: too long for 16 bits, in which autocast would have them (meta has none).
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            heads = qkv.float().flatten(2).unflatten(1, (-1, 3, self.head_width))
            q, k, v = F.relu(heads[:, :, 0]), F.relu(heads[:, :, 1]), heads[:, :, 2]
            total = k.sum(dim=-1, keepdim=True).transpose(-1, -2) @ q
            y = (v @ k.transpose(-1, -2)) @ q / (total + 1e-15)
        y = y.to(qkv.dtype).flatten(1, 2).unflatten(2, x.shape[-2:])
        return x + self.norm_out(self.to_out(y.movedim(1, -1)).movedim(-1, 1))


class Mixing(nn.Module):
    """Each channel over a neighbourhood, then channels within groups."""

    def __init__(self, channels: int, side: int, *, groups: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.proj_out(self.proj_in(x))


class GatedConvolution(nn.Module):
    """x + norm(W (y silu(gate))), where y and gate are a depthwise convolution of silu(W' x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.conv_inverted = nn.Conv2d(channels, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return x + self.norm(self.conv_point(y * F.silu(gate)))
