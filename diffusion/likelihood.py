"""How likely latents are: the probability flow carries them to noise, whose density is known.

On the straight path, y = x_t / (alpha + sigma) over the place u, the flow is dy / du = v = (y - x̂) / u, and

    log p(x) = log p_1(y_1) + integral over u of div v,    div v = (d - tr(d x̂ / d y)) / u

(Chen et al., 2018, Equation 8; Song et al., 2021, "Score-based generative modeling", Equation 39). It is the
density of what the denoiser's flow draws, in nats, on whitened latents.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser, On
from diffusion.latents import LatentStatistics
from diffusion.noise import RectifiedFlow
from diffusion.randomness import generator

LEVEL = 2 / 255
"""Width of a level of 8-bit pixels in [-1, 1]."""
Probes = Callable[[int], Tensor]
"""Probes of the n-th evaluation, [k b c h w]: independent numbers of zero mean and unit variance."""


@torch.no_grad()
def log_likelihood(
    denoiser: AnyDenoiser,
    x: Float[Tensor, "b c h w"],
    conditioning: Conditioning,
    probes: Probes | None = None,
    *,
    steps: int = 160,
) -> Float64[Tensor, " b"]:
    """log p(x) by Heun's method: two calls a step, each with one backward pass for each probe.

    The trace is the mean of v^T J v over the probes v, without bias (Hutchinson, 1989); if there are none it
    is exact, with as many backward passes as latents. With `Rademacher` probes, fresh in each evaluation, the
    errors of the evaluations cancel: on a mixture in 8 dimensions they left 0.16 nats (of a DiT in 576, in 40
    steps, 1.3), and one probe that is kept all the way, as adaptive solvers need it, 1.5 (13).

    The steps lie at u = (n / steps)^2, as the flow is stiff where latents are nearly clean: on mixtures with
    deviations down to 0.005, 160 of them came within 0.01 nats and 80 within 0.04, closer than even,
    logarithmic or Karras spacing. Single precision is enough.

    At the path's end latents are taken to be N(0, alpha^2 + sigma^2): they are whitened, and of their shape
    there is alpha left.
    """
    flow = On(denoiser, RectifiedFlow())
    end = denoiser.schedule.place(1.0)
    if probes is None:
        exact = _basis(x)
        probes = lambda _: exact  # noqa: E731
    y, change = x, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for n in range(steps):
        u, w = end * (n / steps) ** 2, end * ((n + 1) / steps) ** 2
        slope, divergence = _slope(flow, y, u, conditioning, probes(2 * n))
        after, its = _slope(flow, y + (w - u) * slope, w, conditioning, probes(2 * n + 1))
        y = y + (w - u) / 2 * (slope + after)
        change += (w - u) / 2 * (divergence + its)
    variance = end**2 + (1 - end) ** 2
    square = y.double().flatten(1).square().sum(1) / variance
    return change - (square + x[0].numel() * math.log(2 * math.pi * variance)) / 2


def _slope(
    flow: AnyDenoiser,
    y: Float[Tensor, "b c h w"],
    u: float,
    conditioning: Conditioning,
    probes: Float[Tensor, "k b c h w"],
) -> tuple[Float[Tensor, "b c h w"], Float64[Tensor, " b"]]:
    """v and its divergence; at u = 0 their limits, as E[z | y] = -u times a score that is finite."""
    if u == 0:
        return -y, torch.full((len(y),), -float(y[0].numel()), dtype=torch.float64, device=y.device)
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        clean = flow(y, u, conditioning)
    divergence = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for v in probes.to(y.dtype):
        (product,) = torch.autograd.grad(clean, y, v, retain_graph=True)
        # Subtracted element by element: near u = 0 the trace is all but d, and little of its digits is left.
        divergence += (v * (v - product)).flatten(1).sum(1, dtype=torch.float64)
    return (y.detach() - clean.detach()) / u, divergence / (len(probes) * u)


def _basis(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "d b c h w"]:
    """Probes whose mean is the trace."""
    d = x[0].numel()
    axes = math.sqrt(d) * torch.eye(d, dtype=x.dtype, device=x.device)
    return axes.reshape(d, 1, *x.shape[1:]).expand(-1, len(x), -1, -1, -1)


@dataclass(frozen=True, eq=False)
class Rademacher:
    """Signs, of each row by its position: of all independent probes those of least variance, as they leave
    none to the diagonal (Hutchinson, 1989).

    An evaluation flips them by signs of its own, the same for all rows: so they are fresh to each row, and
    only few numbers are drawn.
    """

    seed: int
    positions: Int[np.ndarray, " b"]
    shape: Sequence[int]
    """Of one row."""
    count: int = 1
    """Probes an evaluation."""
    device: torch.device | str = "cpu"

    def __call__(self, number: int) -> Float[Tensor, "k b ..."]:
        return self._rows * self._signs(number, "flip").to(self.device)

    @functools.cached_property
    def _rows(self) -> Float[Tensor, "k b ..."]:
        probes = [
            torch.stack([self._signs(int(position), f"probe {n}") for position in self.positions])
            for n in range(self.count)
        ]
        return torch.stack(probes).to(self.device)

    def _signs(self, position: int, stream: str) -> Float[Tensor, ...]:
        bits = generator(self.seed, position, stream).integers(0, 2, self.shape, np.int8)
        return torch.from_numpy(2 * bits - 1).float()


def bits_per_dimension(
    log_likelihood: Float64[Tensor, " b"],
    shape: tuple[int, int, int],
    statistics: LatentStatistics,
    *,
    bin_width: float = 1.0,
) -> Float64[Tensor, " b"]:
    """-log2 p a number of the unwhitened latents, whose bins are so wide.

    Of pixels that an identity autoencoder passes on, with `bin_width=LEVEL` and `dequantised`, it bounds the
    bits that a lossless code of the 8-bit image takes (Theis et al., 2016, Equation 3; 1 / 128 would be the
    customary +7). Of other latents it is a density of those latents, and compares with no other model's.
    """
    channels, height, width = shape
    log_scale = height * width * sum(math.log(std) for std in statistics.std)
    nats = (log_scale - log_likelihood) / (channels * height * width)
    return nats / math.log(2) - math.log2(bin_width)


def dequantised(
    images: Float[Tensor, "b c h w"], uniform: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """8-bit pixels in [-1, 1], each spread over its level by a number in [0, 1)."""
    return images + LEVEL * (uniform - 0.5)
