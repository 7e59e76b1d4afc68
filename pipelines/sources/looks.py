"""What is kept of pictures to find their copies by a network: records of one length, a file a part.

They stay beside the survey and never travel through the driver's tables.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import Storage
from pipelines.duplicates.verification import BYTES, SIDE

if TYPE_CHECKING:
    from pipelines.duplicates.features import Features

_WIDTH = 1280
"""Of a feature vector, fp16."""
RECORD = 2 * _WIDTH + BYTES
_network: list[Features] = []
_one = threading.Lock()


def records(lightness: Sequence[bytes], thumbnails: Sequence[bytes]) -> list[bytes]:
    """A record each, of pictures as `look_features` gives them."""
    from pipelines.duplicates.features import Features

    if not lightness:
        return []
    # One at a time: a second network beside it would take the same cores, and its memory again.
    with _one:
        if not _network:
            _network.append(Features())
        features = _network[0](lightness)
    return [feature.tobytes() + small for feature, small in zip(features, thumbnails, strict=True)]


def record(place: Storage, file: str, n: int) -> bytes:
    """Record `n` of a file."""
    return place.read_range(file, n * RECORD, RECORD)


def gathered(place: Storage, where: Sequence[tuple[str, int] | None], folder: Path) -> tuple[Any, Any]:
    """Features (fp16 [n, 1280]) and thumbnails (uint8 [n, 2, 64, 64]) of images, as memory maps.

    Args:
        where: for each image its file and the number of its record; None: it has none, and is all zeros.
        folder: that holds the maps, 11 KB an image.
    """
    import numpy as np

    count = max(1, len(where))
    features = np.memmap(folder / "features", np.float16, "w+", shape=(count, _WIDTH))
    thumbnails = np.memmap(folder / "thumbnails", np.uint8, "w+", shape=(count, 2, SIDE, SIDE))
    of_file: dict[str, list[tuple[int, int]]] = {}
    for n, found in enumerate(where):
        if found is not None:
            of_file.setdefault(found[0], []).append((n, found[1]))
    for file, found in of_file.items():
        data = np.frombuffer(place.read(file), np.uint8).reshape(-1, RECORD)
        rows, numbers = (list(column) for column in zip(*found, strict=True))
        features[rows] = np.ascontiguousarray(data[numbers, : 2 * _WIDTH]).view(np.float16)
        thumbnails[rows] = data[numbers, 2 * _WIDTH :].reshape(-1, 2, SIDE, SIDE)
    return features[: len(where)], thumbnails[: len(where)]
