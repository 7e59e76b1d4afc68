"""Records on their way from one pass to the next: written sorted by bucket, read bucket by bucket.

So a task reads what is for it of every part, and nothing else, and no task holds more than its bucket.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from cluster.storage import Storage

_HEAD = 8
"""Bytes that give the header's length."""


def write(storage: Storage, name: str, buckets: np.ndarray, records: np.ndarray, count: int) -> None:
    """Commits structured records [n] to file `name`, each in its bucket (0 to `count` - 1); order is kept."""
    order = np.argsort(buckets, kind="stable")
    sizes = np.bincount(buckets, minlength=count)
    header = json.dumps({"dtype": records.dtype.descr, "sizes": sizes.tolist()}).encode()
    data = len(header).to_bytes(_HEAD, "little") + header + records[order].tobytes()
    storage.put_if_absent(name, data)


class Shuffled:
    """A file that `write` made."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        length = int.from_bytes(storage.read_range(name, 0, _HEAD), "little")
        header: dict[str, Any] = json.loads(storage.read_range(name, _HEAD, length))
        self._dtype = np.dtype([(n, t, *(tuple(s) for s in shape)) for n, t, *shape in header["dtype"]])
        self.sizes = np.array(header["sizes"], np.int64)
        """Records of each bucket."""
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._offset = _HEAD + length

    def read(self, bucket: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The records of a bucket, or those from `start` to before `stop` of it."""
        stop = int(self.sizes[bucket]) if stop is None else min(stop, int(self.sizes[bucket]))
        if stop <= start:
            return np.empty(0, self._dtype)
        size = self._dtype.itemsize
        first = int(self._starts[bucket]) + start
        data = self._storage.read_range(self._name, self._offset + first * size, (stop - start) * size)
        return np.frombuffer(data, self._dtype)
