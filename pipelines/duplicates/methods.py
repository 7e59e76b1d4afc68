"""What counts as a duplicate: one small config a way of finding them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Equal bytes of the stored image."""

    kind: Literal["exact"] = "exact"


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """Equal bytes, or perceptual hashes that nearly agree: resized, recompressed and mirrored copies.

    Of crops by 10 % it finds half; what it finds is not looked at a second time.
    """

    kind: Literal["perceptual"] = "perceptual"
    distance: int = 4
    """Bits of 64 in which the hashes differ at most (0 to 7)."""

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= 7:
            raise ValueError(f"distance is {self.distance} bits; it must be 0 to 7.")


@dataclass(frozen=True, kw_only=True)
class Semantic:
    """Equal bytes, or features of a network that point the same way, each such pair then verified.

    With `verify` it finds resized, recompressed, cropped, mirrored and recoloured copies; without, whatever
    the network takes for the same thing, which is a matter of taste and not of copies.

    Measured on copies of 256 px emoji (all of 200 found) and of gray 28 px garments (72 % of 200; resized
    ones 50 %, recompressed ones 40 %): what is lost of a tiny picture counts as a difference.
    """

    kind: Literal["semantic"] = "semantic"
    cosine: float = 0.8
    """Of two feature vectors, from which on they are candidates."""
    verify: float | None = 0.9
    """Agreement of the two pictures, once laid over each other, from which on candidates are duplicates: 1 is
    the same picture, 1 - x one in whose worst place a share x of what is to be seen differs. None: candidates
    are duplicates."""
    neighbours: int = 16
    """Candidates of an image that are looked at, the nearest first; where all are duplicates, all that are
    near enough."""
    partition: int = 50_000
    """Images whose features one task holds, about: 4 bytes times the features' width each."""
    probes: int = 8
    """Partitions that each image is searched in, the nearest first; only matters above one partition."""
    seed: int = 0
    """Of the partitions."""

    def __post_init__(self) -> None:
        if not 0 < self.cosine <= 1:
            raise ValueError(f"cosine is {self.cosine:g}; it must be above 0 and at most 1.")
        if self.verify is not None and not 0 < self.verify <= 1:
            raise ValueError(f"verify is {self.verify:g}; it must be above 0 and at most 1, or null.")
        for name, least in (("neighbours", 1), ("partition", 100), ("probes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")


Method = Exact | Perceptual | Semantic
