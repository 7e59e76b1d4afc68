"""Images larger than a network can take, in overlapping tiles that agree at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.noise import Schedule, Time


@dataclass(frozen=True, eq=False)
class Tiled:
    """A denoiser around a denoiser: the weighted mean of its answers on overlapping tiles (Bar-Tal et al.,
    2023, "MultiDiffusion", equation 5).

    Tiles are blended at every call, so the whole is drawn as one image; weights fall off linearly in the
    overlap. Where the network sees no further than a quarter of the overlap, the answer is the whole's.
    """

    denoiser: AnyDenoiser
    size: int
    """Side of a tile, in latents."""
    overlap: int
    """Latents that neighbours share, at least; below `size`."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"tiles of {self.size} cannot overlap by {self.overlap}.")

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        height, width = x_t.shape[-2:]
        if height <= self.size and width <= self.size:
            return self.denoiser(x_t, t, conditioning)
        total, weights = torch.zeros_like(x_t), x_t.new_zeros(height, width)
        for rows in spans(height, self.size, self.overlap):
            for columns in spans(width, self.size, self.overlap):
                told = conditioning
                if conditioning.low is not None:
                    told = replace(conditioning, low=conditioning.low[..., rows, columns])
                answer = self.denoiser(x_t[..., rows, columns], t, told)
                down = ramp(rows, height, self.overlap, x_t)
                weight = down[:, None] * ramp(columns, width, self.overlap, x_t)
                total[..., rows, columns] += weight * answer
                weights[rows, columns] += weight
        return total / weights


def spans(length: int, size: int, overlap: int) -> Iterator[slice]:
    """Tiles along a side, evenly spread so that neighbours share at least `overlap`."""
    size = min(size, length)
    count = 1 + -(-(length - size) // (size - overlap)) if length > size else 1
    for n in range(count):
        start = round(n * (length - size) / max(1, count - 1))
        yield slice(start, start + size)


def ramp(span: slice, length: int, overlap: int, like: Tensor) -> Float[Tensor, " n"]:
    """Weights along a side of a tile: 1 inside, 0 in the overlap's last quarter, and a ramp between."""
    size = span.stop - span.start
    place = torch.arange(size, dtype=like.dtype, device=like.device) + 0.5
    far = torch.full_like(place, float("inf"))
    left = place if span.start > 0 else far
    right = size - place if span.stop < length else far
    inner = torch.minimum(left, right) - overlap / 4
    return (inner / max(overlap / 2, 0.5)).clamp(0, 1)
