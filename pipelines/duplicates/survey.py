"""The first pass over a dataset: what is known of a shard's rows, put where the other passes read it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.storage import Storage
from pipelines.arrays import from_npy
from pipelines.dataset import Dataset
from pipelines.duplicates import partitions
from pipelines.duplicates.features import Features, look_features
from pipelines.duplicates.methods import Exact, Method, Perceptual
from pipelines.duplicates.passes import ROW, read_npy, write_looks, write_rows
from pipelines.duplicates.perceptual import look
from pipelines.duplicates.verification import SIDE, thumbnail

_AT_ONCE = 256
"""Pictures whose network inputs are held at once."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Puts what is known of a shard's rows into the work folder: digests, and hashes or features."""

    work: Storage
    images: Dataset
    features: Dataset | None
    by: Method
    total: int

    def __call__(self) -> Callable[[str], tuple[int, int]]:
        network: list[Features] = []

        def survey(shard: str) -> tuple[int, int]:
            """Rows, and those of them that could not be looked at."""
            if self.work.exists(f"rows/{shard}.npy"):
                rows = read_npy(self.work, f"rows/{shard}.npy")
                return len(rows), int((rows["seen"] == 0).sum())
            index = self.images.index(shard)
            rows = np.zeros(len(index), ROW)
            rows["key"] = index.keys
            for n in range(len(index)):
                if index.reasons[n] is None and index.member(n, "image"):
                    rows["digest"][n] = index.digests(n, ("image",))[0]
                    rows["area"][n] = _area(index.meta[n])
            if isinstance(self.by, Exact):
                looked = set(np.flatnonzero(rows["digest"] != b"").tolist())
            elif isinstance(self.by, Perceptual):
                looked = self._hashes(shard, self.by)
            else:
                if self.features is None and not network:
                    network.append(Features())
                looked = self._features(shard, network)
            rows["seen"] = [n in looked or rows["digest"][n] == b"" for n in range(len(rows))]
            write_rows(self.work, shard, rows, self.total)
            return len(rows), int((rows["seen"] == 0).sum())

        return survey

    def _pictures(self, shard: str) -> Iterator[tuple[int, Any]]:
        """(row, PIL image) of each picture that decodes."""
        from PIL import Image

        numbers = {key: n for n, key in enumerate(self.images.index(shard).keys)}
        for record in self.images.read(shard):
            try:
                with Image.open(
                    io.BytesIO(record.members["image"]), formats=("JPEG", "PNG", "WEBP")
                ) as image:
                    picture = image.convert("RGB")
            except (OSError, SyntaxError, ValueError):
                # bytes that were kept unseen may not decode: such a row has its digest alone, and is counted
                continue
            yield numbers[record.key], picture

    def _hashes(self, shard: str, by: Perceptual) -> set[int]:
        looks, looked = {}, set()
        for n, picture in self._pictures(shard):
            looked.add(n)
            if (seen := look(picture)) is not None:
                looks[n] = seen
        write_looks(self.work, shard, looks, by.distance, self.total)
        return looked

    def _features(self, shard: str, network: Sequence[Any]) -> set[int]:
        given = self._given(shard)
        thumbnails = np.zeros((len(self.images.index(shard)), 2, SIDE, SIDE), np.uint8)
        rows: list[int] = []
        vectors: list[np.ndarray] = []
        waiting: list[bytes] = []
        for n, picture in self._pictures(shard):
            if given is None:
                seen = look_features(picture)
                small = seen.thumbnail
                waiting.append(seen.lightness)
                if len(waiting) == _AT_ONCE:
                    vectors.append(network[0](waiting))
                    waiting = []
            elif n in given:
                small = thumbnail(picture)
                vectors.append(given[n][None])
            else:
                continue
            rows.append(n)
            thumbnails[n] = np.frombuffer(small, np.uint8).reshape(2, SIDE, SIDE)
        if waiting:
            vectors.append(network[0](waiting))
        width = vectors[0].shape[1] if vectors else 1
        found = np.concatenate([np.empty((0, width), np.float16), *vectors])
        partitions.write_thumbnails(self.work, shard, thumbnails)
        partitions.write_features(self.work, shard, rows, found)
        return set(rows)

    def _given(self, shard: str) -> dict[int, Any] | None:
        """Row -> its vector, scaled to length 1, where another stage made them."""
        if self.features is None:
            return None
        keys = self.images.index(shard).keys
        if self.features.index(shard).keys != keys:
            raise ValueError(
                f"features and images differ in the rows of shard {shard}: embed the images that "
                "deduplicate names."
            )
        numbers = {key: n for n, key in enumerate(keys)}
        found = {}
        for record in self.features.read(shard, columns=("image.npy",)):
            vector = from_npy(record.members["image.npy"]).astype(np.float32).ravel()
            found[numbers[record.key]] = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(
                np.float16
            )
        return found


def _area(meta: Mapping[str, Any]) -> int:
    for names in (("original_width", "original_height"), ("width", "height")):
        width, height = (meta.get(name) for name in names)
        if isinstance(width, int) and isinstance(height, int):
            return width * height
    return 0
