"""Where a token is: rotary angles for offsets, a table of sines for the place in the frame; at any size.

A grid that differs from the trained one asks the two for different things. Rotary products see offsets alone
and keep their unit, a token, so that texture is drawn as in training: they hold up well beyond the trained
grid (Heo et al., 2024, "Rotary Position Embedding for Vision Transformer"). A table evaluated beyond it says
things that were never seen, so its positions are scaled to the trained extent (Chen et al., 2023, "Positional
Interpolation"): the layout is carried over, a corner stays a corner. Sizes far from the trained one still
cost quality (Liu et al., 2025, "Randomized Positional Encodings"): a network that is to draw them should see
some in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

import torch
from jaxtyping import Float
from torch import Tensor, nn

_TABLES: dict[tuple[object, ...], Tensor] = {}
_KEPT = 64
P = ParamSpec("P")


def rotary_angles(rows: int, columns: int, width: int, *, theta: float = 100.0) -> Float[Tensor, "n half"]:
    """Angles of the axial 2-D rotary embedding: half of the channel pairs turn with the row, half the column.

    Tokens in row-major order; `width` is a head's, a multiple of 4. `theta` is small because grids are: the
    slowest pair turns once in 2 pi theta tokens (Su et al., 2021; axial as in Heo et al., 2024).
    """
    frequencies = _frequencies(width, theta)
    row = _range(rows)[:, None, None] * frequencies
    column = _range(columns)[None, :, None] * frequencies
    shape = (rows, columns, width // 4)
    return (
        torch.cat([row.expand(shape), column.expand(shape)], dim=-1)
        .reshape(rows * columns, width // 2)
        .float()
    )


def _constant(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A compiled graph takes the result as a constant; a grid of another size compiles anew, as shapes are
    static. This is `torch.compiler.assume_constant_result` without its import of the compiler, which takes
    seconds, also from those who never compile."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


@_constant
def rotary_table(
    rows: int, columns: int, width: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "2 n half"]:
    """Cosines and sines of `rotary_angles`, for `rotate`; computed once for each grid, device and dtype."""

    def make() -> Tensor:
        angles = rotary_angles(rows, columns, width)
        return torch.stack([angles.cos(), angles.sin()])

    return _kept(make, ("rotary", rows, columns, width), device, dtype)


@_constant
def position_table(
    rows: int,
    columns: int,
    width: int,
    trained: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> Float[Tensor, "n w"]:
    """Fixed sines and cosines of row and column: where in the frame a token is, which rotary positions do
    not say (Dosovitskiy et al., 2021, there learned). Computed once, as `rotary_table` is.

    Position i of n, where m were trained, is (i + 1/2) m / n - 1/2, each axis for itself: a token's centre in
    the trained frame. At the trained size it is i.
    """

    def make() -> Tensor:
        frequencies = _frequencies(width, 10_000.0)
        row, column = (
            ((_range(n) + 0.5) * (m / n) - 0.5)[:, None] * frequencies
            for n, m in zip((rows, columns), trained, strict=True)
        )
        shape = (rows, columns, width // 4)
        row, column = row[:, None].expand(shape), column[None].expand(shape)
        table = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1)
        return table.reshape(rows * columns, width).float()

    return _kept(make, ("place", rows, columns, width, *trained), device, dtype)


def rotate(x: Float[Tensor, "b n h d"], rotary: Float[Tensor, "2 *b n half"]) -> Float[Tensor, "b n h d"]:
    """Turns channel pairs (i, i + d/2) of every head by the token's angles: dot products see offsets only."""
    a, b = x.chunk(2, dim=-1)
    cosine, sine = rotary[..., None, :].unbind(0)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


def _frequencies(width: int, theta: float) -> Float[Tensor, " quarter"]:
    return theta ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") * 4 / width)


def _range(count: int) -> Float[Tensor, " count"]:
    return torch.arange(count, dtype=torch.float64, device="cpu")


def _kept(
    make: Callable[[], Tensor], key: tuple[object, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Made on the CPU, so that every device has the same numbers, and copied over once: no later forward
    pass waits for it."""
    key = (*key, device, dtype)
    table = _TABLES.get(key)
    if table is None:
        # Made while sampling, it must still serve training. To a compiler a parameter's shape is fixed, where
        # it would open that of a tensor seen in two sizes, and then miss its name.
        with torch.inference_mode(False):
            table = nn.Parameter(make().to(device=device, dtype=dtype), requires_grad=False)
        # A tensor that only pretends, of a tracer, would outlive its tracing.
        if type(table) is nn.Parameter:
            while len(_TABLES) >= _KEPT:
                del _TABLES[next(iter(_TABLES))]
            _TABLES[key] = table
    return table
