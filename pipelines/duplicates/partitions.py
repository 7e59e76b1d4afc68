"""The passes that find pairs by features: train, assign, search and verify; what a task holds is bounded.

A search task holds the features of at most `Semantic.partition` homes, the visitors of one part, and the
thumbnails of a few pairs. An image whose nearest neighbours are all its copies may have more: if it is
kept, it is searched again, without a limit.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.storage import Storage
from pipelines.duplicates import semantic, shuffle
from pipelines.duplicates.methods import Semantic
from pipelines.duplicates.passes import PAIR, Map, npy, read_npy, unique_pairs
from pipelines.duplicates.verification import agreement

_VERIFIED = 256
"""Pairs whose thumbnails are held at once."""
_KNOWN = 500_000
"""Pairs of a task whose agreement is remembered: each is met from both of its sides."""
_HEAD = 1024
"""Bytes that hold the header of an npy file of ours."""
Search = tuple[int, int, int]
"""Partition, and first and last (excluded) home of it."""


def write_features(work: Storage, part: str, rows: Sequence[int], vectors: np.ndarray) -> None:
    """Commits features (fp16 [n, width], of length 1) of those rows of a part."""
    work.put_if_absent(f"features/{part}.npy", npy(records(rows, vectors)))


def write_thumbnails(work: Storage, part: str, thumbnails: np.ndarray) -> None:
    """Commits thumbnails: uint8 [rows of the part, 2, 64, 64], zeros where a row has none."""
    work.put_if_absent(f"thumbnails/{part}.npy", npy(thumbnails))


def records(rows: Sequence[int], vectors: np.ndarray) -> np.ndarray:
    found = np.zeros(len(rows), np.dtype([("row", "i4"), ("vector", "f2", (vectors.shape[1],))]))
    found["row"], found["vector"] = rows, vectors
    return found


def find_semantic(
    run: Map, work: Storage, parts: Sequence[str], method: Semantic, skip: Mapping[int, Sequence[int]]
) -> np.ndarray:
    """Pairs of near copies (PAIR [n]) among all rows with features but those of `skip`."""
    counts = [_head(work, f"features/{part}.npy")[0] for part in parts]
    count = semantic.partitions(sum(counts), method.partition)
    if not work.exists("centroids.npy"):
        means = semantic.centroids(_sample(work, parts, counts, count), count, method.seed)
        work.put_if_absent("centroids.npy", npy(means))
    numbers = [number for number, n in enumerate(counts) if n]
    for _ in run(AssignPass(work, tuple(parts), method, skip), numbers):
        pass
    homes = sum((shuffle.Shuffled(work, f"homes/{parts[n]}").sizes for n in numbers), np.zeros(1, np.int64))
    pieces = [
        (partition, start, start + method.partition)
        for partition, size in enumerate(homes.tolist())
        for start in range(0, size, method.partition)
    ]
    found, again, asked = np.empty(0, PAIR), None, set()
    for number in range(1 + sum(counts)):
        factory = SearchPass(work, tuple(parts), method, number, again)
        results = sorted(run(factory, pieces), key=lambda result: result[0])
        found = np.concatenate([found, *(pairs for _, pairs in results)])
        crowded = _crowded(found) - asked
        if not crowded:
            break
        asked |= crowded
        again = {}
        for part, row in sorted(crowded):
            again.setdefault(part, []).append(row)
    return unique_pairs(found)


def _crowded(found: np.ndarray) -> set[tuple[int, int]]:
    """Rows that may have more copies than were found and that no earlier row takes in: told by self-pairs.

    Searching a few rows of a crowd finds all of it, as each of them is near all.
    """
    alone = (found["part"][:, 0] == found["part"][:, 1]) & (found["row"][:, 0] == found["row"][:, 1])
    full = {(int(p[0]), int(r[0])) for p, r in zip(found["part"][alone], found["row"][alone], strict=True)}
    fallen: set[tuple[int, int]] = set()
    near: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for p, r in zip(found["part"][~alone].tolist(), found["row"][~alone].tolist(), strict=True):
        a, b = (p[0], r[0]), (p[1], r[1])
        if a in full:
            near.setdefault(a, []).append(b)
        if b in full:
            near.setdefault(b, []).append(a)
    kept = set()
    for place in sorted(full):
        if place not in fallen:
            kept.add(place)
            fallen.update(near.get(place, ()))
    return kept


def _sample(work: Storage, parts: Sequence[str], counts: Sequence[int], count: int) -> np.ndarray:
    """Vectors to train the centroids on: the leading ones of every part, by its share of all."""
    total = sum(counts)
    wanted = semantic.sample_size(count) if count > 1 else 1
    found = []
    for part, n in zip(parts, counts, strict=True):
        if n:
            _, dtype, offset = _head(work, f"features/{part}.npy")
            size = min(n, -(-wanted * n // total)) * dtype.itemsize
            table = np.frombuffer(work.read_range(f"features/{part}.npy", offset, size), dtype)
            found.append(table["vector"].astype(np.float32))
    return np.concatenate(found) if found else np.zeros((0, 1), np.float32)


def _head(work: Storage, name: str) -> tuple[int, np.dtype[Any], int]:
    """Records of an npy file, their type, and where they begin; of a file far away, little is read."""
    file = io.BytesIO(work.read_range(name, 0, min(work.size(name), _HEAD)))
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape[0], dtype, file.tell()


@dataclass(frozen=True)
class AssignPass:
    """Puts the rows of a part into the partition that each is at home in, and those that it visits."""

    work: Storage
    parts: tuple[str, ...]
    method: Semantic
    skip: Mapping[int, Sequence[int]]

    def __call__(self) -> Callable[[int], None]:
        means = read_npy(self.work, "centroids.npy")

        def assign(number: int) -> None:
            part = self.parts[number]
            if self.work.exists(f"visits/{part}"):
                return
            table = read_npy(self.work, f"features/{part}.npy")
            table = table[~np.isin(table["row"], self.skip.get(number, ()))]
            nearest = semantic.nearest_partitions(table["vector"], means, self.method.probes)
            shuffle.write(self.work, f"homes/{part}", nearest[:, 0], table, len(means))
            visits = nearest[:, 1:]
            who, _ = np.nonzero(visits >= 0)
            shuffle.write(self.work, f"visits/{part}", visits.ravel(), table[who], len(means))

        return assign


@dataclass(frozen=True)
class SearchPass:
    """Pairs of a partition's homes with all that are at home there or visit it, each verified.

    A pair of a row with itself says that all its neighbours were its copies, and that there may be more.
    """

    work: Storage
    parts: tuple[str, ...]
    method: Semantic
    number: int
    """Of the round."""
    again: Mapping[int, Sequence[int]] | None
    """Rows to search without a limit; all, with the limit, if None."""

    def __call__(self) -> Callable[[Search], tuple[Search, np.ndarray]]:
        means = read_npy(self.work, "centroids.npy")

        def search(piece: Search) -> tuple[Search, np.ndarray]:
            name = f"pairs/{self.number}-{piece[0]}-{piece[1]}.npy"
            if not self.work.exists(name):
                self.work.put_if_absent(name, npy(self._pairs(piece, means.shape[1])))
            return piece, read_npy(self.work, name)

        return search

    def _pairs(self, piece: Search, width: int) -> np.ndarray:
        partition, start, stop = piece
        places: list[np.ndarray] = []
        known: dict[tuple[int, ...], float] = {}

        def blocks() -> Iterator[np.ndarray]:
            seen = 0
            for number, file in self._files("homes", None):
                size = int(file.sizes[partition])
                block = file.read(partition, max(0, start - seen), max(0, stop - seen))
                seen += size
                places.append(np.stack([np.full(len(block), number), block["row"]], 1))
                yield block["vector"]

        homes = semantic.Homes(width, blocks())
        place = np.concatenate(places)
        found = [np.empty(0, PAIR)]
        for folder in ("homes", "visits"):
            for number, file in self._files(folder, self.again):
                visitors = file.read(partition)
                if self.again is not None:
                    visitors = visitors[np.isin(visitors["row"], self.again[number])]
                if len(visitors):
                    found.append(self._searched(homes, place, number, visitors, known))
        pairs = np.concatenate(found)
        lone = (pairs["part"][:, 0] == pairs["part"][:, 1]) & (pairs["row"][:, 0] == pairs["row"][:, 1])
        return np.concatenate([unique_pairs(pairs), np.unique(pairs[lone])])

    def _files(
        self, folder: str, only: Mapping[int, Sequence[int]] | None
    ) -> Iterator[tuple[int, shuffle.Shuffled]]:
        for number, part in enumerate(self.parts):
            name = f"{folder}/{part}"
            if (only is None or number in only) and self.work.exists(name):
                yield number, shuffle.Shuffled(self.work, name)

    def _searched(
        self,
        homes: semantic.Homes,
        place: np.ndarray,
        number: int,
        visitors: np.ndarray,
        known: dict[tuple[int, ...], float],
    ) -> np.ndarray:
        limit = self.method.neighbours if self.again is None else None
        found = [np.empty(0, PAIR)]
        near = homes.near(visitors["vector"], cosine=self.method.cosine, count=limit and limit + 1)
        for who, home, cosine in near:
            pairs = np.zeros(len(who), PAIR)
            pairs["part"] = np.stack([np.full(len(who), number), place[home, 0]], 1)
            pairs["row"] = np.stack([visitors["row"][who], place[home, 1]], 1)
            pairs["similarity"] = np.minimum(cosine, 1)
            pairs = pairs[
                (pairs["part"][:, 0] != pairs["part"][:, 1]) | (pairs["row"][:, 0] != pairs["row"][:, 1])
            ]
            if self.method.verify is not None:
                pairs["similarity"] = self._verified(pairs, known)
                kept = pairs[pairs["similarity"] >= self.method.verify]
            else:
                kept = pairs
            found.append(kept)
            if limit:
                rows, counts = np.unique(kept["row"][:, 0], return_counts=True)
                full = rows[counts >= limit]
                lone = np.zeros(len(full), PAIR)
                lone["part"], lone["row"], lone["similarity"] = number, full[:, None], 1
                found.append(lone)
        return np.concatenate(found)

    def _verified(self, pairs: np.ndarray, known: dict[tuple[int, ...], float]) -> np.ndarray:
        """Agreement of each pair, taken the same way round wherever it is met, so that it is the same."""
        turned = [
            (*part, *row) if (part[0], row[0]) < (part[1], row[1]) else (*part[::-1], *row[::-1])
            for part, row in zip(pairs["part"].tolist(), pairs["row"].tolist(), strict=True)
        ]
        if len(known) > _KNOWN:
            known.clear()
        new = sorted(set(turned) - known.keys())
        for start in range(0, len(new), _VERIFIED):
            block = new[start : start + _VERIFIED]
            left, right = (
                np.stack([_thumbnails(self.work, self.parts[pair[n]])[pair[n + 2]] for pair in block])
                for n in (0, 1)
            )
            known |= zip(block, agreement(left, right).tolist(), strict=True)
        return np.array([known[pair] for pair in turned], np.float32)


@functools.lru_cache(maxsize=64)
def _thumbnails(work: Storage, part: str) -> Any:
    """A part's thumbnails, mapped and not read."""
    return np.load(work.local(f"thumbnails/{part}.npy"), mmap_mode="r", allow_pickle=False)
