"""Statistics of latents: workers sum their shards in fp64, and the driver adds the sums in shard order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.arrays import from_npy
from pipelines.dataset import Dataset

if TYPE_CHECKING:
    from cluster.storage import Storage
    from diffusion.latents import LatentSums

_CHUNK = 256
"""Samples added at once; in the order of keys, so that sums repeat."""

Shape = tuple[int, int, int]


@dataclass(eq=False)
class Sums:
    """Of one column of moments."""

    latents: LatentSums | None = None
    shapes: Counter[Shape] = field(default_factory=Counter)
    """How many samples have latents [c, h, w]."""

    def add(self, other: Sums) -> None:
        if other.latents is not None:
            self.latents = other.latents if self.latents is None else self.latents + other.latents
        self.shapes.update(other.shapes)


@dataclass(frozen=True)
class Summing:
    """Opens, on a worker, what sums one shard: its entry in the manifest -> its columns' sums."""

    folder: Storage
    columns: Sequence[str]

    def __call__(self) -> Callable[[Mapping[str, Any]], dict[str, Sums]]:
        return lambda shard: summed(Dataset(self.folder, {"shards": [shard]}), shard["name"], self.columns)


def summed(dataset: Dataset, shard: str, columns: Sequence[str]) -> dict[str, Sums]:
    """Sums of each column over one shard."""
    found = {column: Sums() for column in columns}
    records = dataset.read(shard, columns=columns)
    for chunk in iter(lambda: list(itertools.islice(records, _CHUNK)), []):
        for column in columns:
            found[column].add(_chunk([from_npy(record.members[column]) for record in chunk]))
    return found


def _chunk(arrays: Sequence[Any]) -> Sums:
    import numpy as np
    import torch

    from diffusion.latents import LatentSums, Moments

    alike: dict[Shape, list[Any]] = {}
    for array in arrays:
        alike.setdefault((len(array) // 2, *array.shape[1:]), []).append(array)
    sums = Sums()
    for shape, pile in sorted(alike.items()):
        mean, std = torch.from_numpy(np.stack(pile)).chunk(2, dim=1)
        part = LatentSums.of(Moments(mean=mean.float(), std=std.float()))
        sums.add(Sums(part, Counter({shape: len(pile)})))
    return sums
