"""The parts of a transformer that denoises: norm, rotary positions, attention, gated feed-forward, time."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.conditioning import Conditioning


class Norm(nn.LayerNorm):
    """Layer norm without bias, over the last dimension (Ba et al., 2016).

    Recent transformers take RMSNorm, which on a CPU torch composes of many small
    operations where layer norm is one: 1.17 s a step instead of 0.95 s (9 M parameters, one core).
    """

    def __init__(self, width: int, *, scale: bool = True) -> None:
        super().__init__(width, eps=1e-6, elementwise_affine=scale, bias=False)


class SwiGLU(nn.Module):
    """W_out (silu(W_gate x) * W_in x) (Shazeer, 2020, eq. 5), both inner products in one matrix."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * hidden, bias=False)
        self.outer = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.outer(F.silu(gate) * value)


def rotary_angles(rows: int, columns: int, width: int, *, theta: float = 100.0) -> Float[Tensor, "n half"]:
    """Angles of the axial 2-D rotary embedding: half of the channel pairs turn with the row, half the column.

    Tokens in row-major order; `width` is a head's, a multiple of 4. `theta` is small because grids are: the
    slowest pair turns once in 2 pi theta tokens (Su et al., 2021; axial as in Heo et al., 2024).
    """
    frequencies = theta ** -(torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    row = torch.arange(rows, dtype=torch.float64)[:, None, None] * frequencies
    column = torch.arange(columns, dtype=torch.float64)[None, :, None] * frequencies
    shape = (rows, columns, width // 4)
    return (
        torch.cat([row.expand(shape), column.expand(shape)], dim=-1)
        .reshape(rows * columns, width // 2)
        .float()
    )


def rotate(
    x: Float[Tensor, "b n h d"], cosine: Float[Tensor, "n half"], sine: Float[Tensor, "n half"]
) -> Float[Tensor, "b n h d"]:
    """Turns channel pairs (i, i + d/2) of every head by the token's angles: dot products see offsets only."""
    a, b = x.chunk(2, dim=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


class SelfAttention(nn.Module):
    """Multi-head attention with normalised queries and keys (Dehghani et al., 2023) and rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm, self.key_norm = Norm(width // heads), Norm(width // heads)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "b n w"], cosine: Float[Tensor, "n half"], sine: Float[Tensor, "n half"]
    ) -> Float[Tensor, "b n w"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q = rotate(self.query_norm(q), cosine, sine)
        k = rotate(self.key_norm(k), cosine, sine)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Image tokens look at context tokens. The output starts at zero: a block begins as if without."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.query_norm, self.key_norm = Norm(width // heads), Norm(width // heads)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "b n w"], context: Float[Tensor, "b m w"], mask: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b n w"]:
        """`mask` is True at real context tokens; every sample must have at least one."""
        q = self.query_norm(self.query(x).unflatten(-1, (self.heads, -1)))
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, self.key_norm(k), v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.out(y.transpose(1, 2).flatten(2))


class TimeEmbedding(nn.Module):
    """Sines and cosines of `scale` * c_noise, then a two-layer perceptron (Peebles & Xie, 2023)."""

    frequencies: Tensor

    def __init__(self, width: int, *, frequencies: int = 128, scale: float = 1000.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer(
            "frequencies",
            torch.exp(-math.log(10_000.0) * torch.arange(frequencies) / frequencies),
            persistent=False,
        )
        self.net = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, c_noise: Float[Tensor, " b"]) -> Float[Tensor, "b w"]:
        angles = self.scale * c_noise[:, None] * self.frequencies
        return self.net(torch.cat([angles.cos(), angles.sin()], dim=-1))


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


def with_low(x: Float[Tensor, "b c h w"], conditioning: Conditioning) -> Float[Tensor, "b both h w"]:
    """`x`, then the small image's latents, along channels. `ValueError` where an upscaler is given none."""
    if conditioning.low is None:
        raise ValueError("An upscaler needs the small image: give Conditioning.low.")
    return torch.cat([x, conditioning.low.to(x.dtype)], dim=1)


def position_table(rows: int, columns: int, width: int) -> Float[Tensor, "n w"]:
    """Fixed sines and cosines of row and column: where a token is, which rotary positions do not say."""
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    row = (torch.arange(rows)[:, None] * frequencies)[:, None].expand(rows, columns, -1)
    column = (torch.arange(columns)[:, None] * frequencies)[None].expand(rows, columns, -1)
    table = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1)
    return table.reshape(rows * columns, width).float()
