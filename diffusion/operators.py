"""Linear measurements of latents: what of an image is known, as a map A and its transpose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Operator(Protocol):
    """A linear map A of each row's latents to whatever is measured of them: <A x, y> = <x, A^T y>."""

    def apply(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """A x."""
        ...

    def transpose(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """A^T y."""
        ...


@dataclass(frozen=True, eq=False)
class Mask:
    """Some latents are known and the others are not: inpainting. What is measured has 0 at the others."""

    known: Bool[Tensor, "#b #c h w"]
    """True where latents are known."""

    def apply(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.where(self.known, x, 0)

    def transpose(self, y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.apply(y)


@dataclass(frozen=True)
class Downsample:
    """The mean of each block of `factor` x `factor` latents is known: super-resolution."""

    factor: int

    def apply(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        """`ValueError` where a side is not a multiple of `factor`."""
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"{x.shape[-1]} x {x.shape[-2]} latents have no whole blocks of {self.factor}.")
        return F.avg_pool2d(x, self.factor)

    def transpose(self, y: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c h w"]:
        rows = y.repeat_interleave(self.factor, dim=-2)
        return rows.repeat_interleave(self.factor, dim=-1) / self.factor**2


@dataclass(frozen=True, eq=False)
class Matrix:
    """Any linear map of few latents, written out.

    Raises:
        ValueError: the matrix is not as wide as there are latents.
    """

    matrix: Float[Tensor, "m d"]
    shape: tuple[int, int, int]
    """c, h and w of the latents."""

    def __post_init__(self) -> None:
        if self.matrix.shape[1] != math.prod(self.shape):
            raise ValueError(f"a matrix {self.matrix.shape[1]} wide does not take latents of {self.shape}.")

    def apply(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        return x.flatten(1) @ self.matrix.T

    def transpose(self, y: Float[Tensor, "b m"]) -> Float[Tensor, "b c h w"]:
        return (y @ self.matrix).reshape(-1, *self.shape)
