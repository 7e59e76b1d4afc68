"""How noise is mixed into latents: schedules, all of which are the straight path, stretched.

A schedule is the path x_t = alpha(t) x + sigma(t) z from clean latents x at t = 0 to noise z at t = 1. With
the place u = sigma / (alpha + sigma) it is x_t = (alpha + sigma) ((1 - u) x + u z): what lies at one place on
one path lies, scaled, at the same place on any other. So a denoiser of one schedule is one of all (`on`).
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Time = float | Float[Tensor, " b"]
"""A time of all rows, or of each: the first is known without asking the device."""
Coefficient = float | Float[Tensor, "..."]
"""A number of all rows, or one each in a shape that multiplies them."""


def broadcast(coefficient: Float[Tensor, "*b"], x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """One number a sample, [b], shaped so that it multiplies `x`, [b ...]; one number, [], as it is."""
    return coefficient.reshape(-1, *(1,) * (x.ndim - 1)) if coefficient.ndim else coefficient


def shifted(t: Float[Tensor, "*s"], shift: float) -> Float[Tensor, "*s"]:
    """Times moved towards noise if shift > 1, as larger images need (Esser et al., 2024, Equation 23).

    Give training and sampling the same shift; `dimension_shift` says which.
    """
    return shift * t / (1 + (shift - 1) * t)


def dimension_shift(dimensions: int, *, reference: int = 4096) -> float:
    """sqrt(dimensions / reference): latents c h w of which the same noise hides as much as of the reference.

    Esser et al., 2024, Section 5.3.2, count pixels; Zheng et al., 2025 ("RAE"), Section 4.2, all numbers.
    """
    return math.sqrt(dimensions / reference)


class Schedule(ABC):
    """A path from clean latents to noise, for t in [0, 1], along which alpha / sigma falls."""

    @abstractmethod
    def __call__(self, t: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        """(alpha, sigma) at time t."""

    @abstractmethod
    def time(self, u: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time at place u = sigma / (alpha + sigma), or the path's last before it: inverse of `place`."""

    def at(self, t: float) -> tuple[float, float]:
        """(alpha, sigma), in double precision."""
        alpha, sigma = self(torch.tensor(t, dtype=torch.float64))
        return float(alpha), float(sigma)

    def place(self, t: float) -> float:
        """u = sigma / (alpha + sigma): 0 where all is clean, 1 where all is noise."""
        alpha, sigma = self.at(t)
        return sigma / (alpha + sigma)

    def time_at(self, u: float) -> float:
        """`time` of one place, in double precision."""
        return float(self.time(torch.tensor(u, dtype=torch.float64)))

    def spread(self, t: Time, x: Float[Tensor, "b ..."]) -> tuple[Coefficient, Coefficient]:
        """(alpha, sigma) at time t, to be multiplied with `x`."""
        if isinstance(t, Tensor):
            alpha, sigma = self(t)
            return broadcast(alpha, x), broadcast(sigma, x)
        return self.at(t)

    def perturb(
        self, x: Float[Tensor, "b ..."], z: Float[Tensor, "b ..."], t: Time
    ) -> Float[Tensor, "b ..."]:
        """x_t = alpha x + sigma z."""
        alpha, sigma = self.spread(t, x)
        return alpha * x + sigma * z


class RectifiedFlow(Schedule):
    """The straight path alpha = 1 - t, sigma = t (Liu et al., 2023, Equation 1)."""

    def __call__(self, t: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        return 1 - t, t

    def at(self, t: float) -> tuple[float, float]:
        return 1 - t, t

    def time(self, u: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        return u


@dataclass(frozen=True, kw_only=True)
class VarianceExploding(Schedule):
    """alpha = 1, sigma = sigma_max t^rho: noise is added, and nothing taken away (Karras et al., 2022).

    sigma_max is a little more than the largest distance between latents; rho only says how times are spread.
    """

    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, t: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        return torch.ones_like(t), self.sigma_max * t**self.rho

    def at(self, t: float) -> tuple[float, float]:
        return 1.0, self.sigma_max * t**self.rho

    def time(self, u: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        sigma = u / (1 - u)
        return (sigma / self.sigma_max).clamp(0, 1) ** (1 / self.rho)


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1, through the points of a discrete chain (Ho et al., 2020, Equation 4).

    Between time n/N, after n of the N steps, and the next, alpha is interpolated linearly; so the chain's own
    times, (n + 1) / N for the timestep that its authors call n, are exact.

    Args:
        betas: variance that each step adds, in (0, 1]; a last one of 1 leaves nothing but noise.

    Raises:
        ValueError: where `betas` are not in (0, 1].
    """

    def __init__(self, betas: Sequence[float] | Float[np.ndarray, " n"]) -> None:
        betas = np.asarray(betas, np.float64)
        if not len(betas) or not ((betas > 0) & (betas <= 1)).all() or (betas[:-1] == 1).any():
            raise ValueError("betas must lie in (0, 1), of which the last one may be 1.")
        self.betas = betas
        alpha = np.sqrt(np.concatenate([[1.0], np.cumprod(1 - betas)]))
        self._alphas = torch.from_numpy(alpha)

    @classmethod
    def linear(cls, steps: int = 1000, *, first: float = 1e-4, last: float = 0.02) -> VariancePreserving:
        """Betas evenly spaced (Ho et al., 2020, Section 4)."""
        return cls(np.linspace(first, last, steps))

    @classmethod
    def scaled_linear(
        cls, steps: int = 1000, *, first: float = 0.00085, last: float = 0.012
    ) -> VariancePreserving:
        """Square roots of betas evenly spaced, as Stable Diffusion has them (Rombach et al., 2022)."""
        return cls(np.linspace(first**0.5, last**0.5, steps) ** 2)

    @classmethod
    def cosine(cls, steps: int = 1000, *, s: float = 0.008, largest: float = 0.999) -> VariancePreserving:
        """alpha^2 a squared cosine, and no beta above `largest` (Nichol and Dhariwal, 2021, Equation 17)."""
        square = np.cos((np.linspace(0, 1, steps + 1) + s) / (1 + s) * np.pi / 2) ** 2
        return cls(np.minimum(1 - square[1:] / square[:-1], largest))

    def zero_terminal(self) -> VariancePreserving:
        """The same chain shifted and scaled so that its last alpha is 0 (Lin et al., 2024, Algorithm 1)."""
        alpha = self._alphas[1:].numpy()
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        square = np.concatenate([[1.0], alpha**2])
        return VariancePreserving(1 - square[1:] / square[:-1])

    def __call__(self, t: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        table = _on(self._alphas, t.device)
        place = t.double().clamp(0, 1) * len(self.betas)
        low = place.floor().long().clamp(max=len(self.betas) - 1)
        alpha = torch.lerp(table[low], table[low + 1], place - low)
        # In double precision, as 1 - alpha^2 would otherwise lose sigma where there is little noise.
        return alpha.to(t.dtype), (1 - alpha * alpha).sqrt().to(t.dtype)

    def at(self, t: float) -> tuple[float, float]:
        place = min(max(t, 0.0), 1.0) * len(self.betas)
        low = min(int(place), len(self.betas) - 1)
        above, below = self._alphas[low : low + 2].tolist()
        alpha = above + (below - above) * (place - low)
        return alpha, math.sqrt(1 - alpha * alpha)

    def time(self, u: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        table = _on(self._alphas, u.device)
        wide = u.double()
        alpha = ((1 - wide) / torch.hypot(wide, 1 - wide)).contiguous()
        high = torch.searchsorted(-table, -alpha).clamp(1, len(self.betas))
        above, below = table[high - 1], table[high]
        return (((high - 1) + (above - alpha) / (above - below)) / len(self.betas)).clamp(0, 1).to(u.dtype)


@functools.lru_cache(maxsize=64)
def _on(table: Tensor, device: torch.device) -> Tensor:
    """The table there: it is copied once, as a copy in each step would wait for the device."""
    return table.to(device)
