"""Between an autoencoder and a network: moments as they are stored, latents as a network sees them.

The autoencoder's posterior is kept unscaled, as mean and standard deviation; drawing and whitening happen at
load, so the statistics can change without encoding again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """The posterior of a batch of images, N(mean, std^2) an element."""

    mean: Float[Tensor, "b c h w"]
    std: Float[Tensor, "b c h w"]

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The draw that belongs to this standard normal noise; not yet whitened."""
        return self.mean + self.std * noise


@dataclass(frozen=True, kw_only=True)
class LatentStatistics:
    """Mean and standard deviation of drawn latents, one each a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def whiten(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Drawn latents with zero mean and unit variance a channel: what a network sees."""
        return (z - _per_channel(self.mean, z)) / _per_channel(self.std, z)

    def unwhiten(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The inverse of `whiten`: what an autoencoder decodes."""
        return x * _per_channel(self.std, x) + _per_channel(self.mean, x)

    def to_json(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> LatentStatistics:
        return cls(mean=tuple(json["mean"]), std=tuple(json["std"]))


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentSums:
    """Sums over moments in fp64, from which their statistics follow; adding two joins their data."""

    count: int
    """Latent elements a channel."""
    first: Float64[np.ndarray, " c"]
    """Sum of z, a channel."""
    second: Float64[np.ndarray, " c"]
    """Sum of z^2, a channel."""

    @classmethod
    def of(cls, moments: Moments) -> LatentSums:
        """In expectation over draws: E[z^2] = mean^2 + std^2, so that no draw enters the statistics."""
        # numpy sums in one thread: the result is the same for any number of threads.
        mean = moments.mean.double().cpu().numpy()
        std = moments.std.double().cpu().numpy()
        axes = (0, 2, 3)
        return cls(
            count=mean.size // mean.shape[1],
            first=mean.sum(axis=axes),
            second=(mean**2 + std**2).sum(axis=axes),
        )

    def __add__(self, other: LatentSums) -> LatentSums:
        return LatentSums(
            count=self.count + other.count,
            first=self.first + other.first,
            second=self.second + other.second,
        )

    def statistics(self) -> LatentStatistics:
        """ValueError if a channel does not vary, since it could not be whitened."""
        mean = self.first / self.count
        std = np.sqrt(np.maximum(self.second / self.count - mean**2, 0))
        if not std.all():
            dead = ", ".join(map(str, np.flatnonzero(std == 0)))
            raise ValueError(f"latent channel {dead} is constant: train the autoencoder longer.")
        return LatentStatistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _per_channel(values: Sequence[float], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "1 c 1 1"]:
    return like.new_tensor(values).reshape(1, -1, 1, 1)
