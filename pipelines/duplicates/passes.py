"""Finding duplicates in passes, each of many tasks that hold a bounded part of the whole.

A *part* is a shard, or a piece of a source. Its task has put into the folder `work` what is known of its rows
(`write_rows` and the other `write_*`); from there on passes run over buckets: ranges of digests, bands of
hashes, partitions of features. All files are committed whole, and what is long is not done again where its
file is there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.storage import Storage
from pipelines.duplicates import shuffle
from pipelines.duplicates.methods import Exact, Method, Perceptual
from pipelines.duplicates.perceptual import Look, banded_pairs, bands

Map = Callable[[Callable[[], Callable[[Any], Any]], Sequence[Any]], Iterator[Any]]
"""`Session.map`: calls what the factory opens on each item, in any order, anywhere."""

ROW = np.dtype([("key", "S80"), ("digest", "S64"), ("area", "i8"), ("seen", "?")])
"""One row of a part; without a digest it takes no part. `area` in px of the original; `seen`: looked at."""
_DIGEST = np.dtype([("digest", "S64"), ("row", "i4")])
_LOOK = np.dtype([("value", "u8"), ("hash", "u8"), ("mirrored", "u8"), ("row", "i4"), ("mirror", "?")])
PAIR = np.dtype([("part", "i4", (2,)), ("row", "i4", (2,)), ("similarity", "f4")])
"""Two rows that are near copies; numbers of parts count the list of parts."""
BUCKET = 500_000
"""Records of a bucket, about."""
_TOP = 24
"""Leading bits of a band's value that choose its bucket."""

Place = tuple[int, int]
"""Number of the part, and of the row in it."""


@dataclass(frozen=True)
class Found:
    """What the passes found."""

    same: list[list[Place]]
    """Groups of rows that are alike in all that pairs are made of."""
    pairs: np.ndarray
    """PAIR [n]; a pair stands for the groups that its rows are in."""


def write_rows(work: Storage, part: str, rows: np.ndarray, total: int) -> None:
    """Commits what is known of a part's rows (ROW [n]); the last file of a part's first pass.

    `total`: rows of all parts, about; equal for all.
    """
    count = buckets(total)
    there = np.flatnonzero(rows["digest"] != b"")
    records = np.zeros(len(there), _DIGEST)
    records["digest"], records["row"] = rows["digest"][there], there
    prefix = np.array([int(digest[:8], 16) for digest in records["digest"]], np.int64)
    shuffle.write(work, f"digests/{part}", prefix * count >> 32, records, count)
    work.put_if_absent(f"rows/{part}.npy", npy(rows))


def write_looks(work: Storage, part: str, looks: Mapping[int, Look], distance: int, total: int) -> None:
    """Commits the perceptual hashes of a part's rows, band by band."""
    numbers = list(looks)
    hashes = np.array([looks[n].hash for n in numbers], np.uint64)
    mirrored = np.array([looks[n].mirrored for n in numbers], np.uint64)
    each = buckets(total)
    records, into = [], []
    for band, (shift, width) in enumerate(bands(distance)):
        for mirror, seen in ((False, hashes), (True, mirrored)):
            record = np.zeros(len(numbers), _LOOK)
            record["value"] = (seen >> np.uint64(shift)) & np.uint64((1 << width) - 1)
            record["hash"], record["mirrored"] = hashes, mirrored
            record["row"], record["mirror"] = numbers, mirror
            records.append(record)
            top = min(width, _TOP)
            leading = (record["value"] >> np.uint64(width - top)).astype(np.int64)
            into.append(band * each + (leading * each >> top))
    count = each * len(bands(distance))
    shuffle.write(work, f"looks/{part}", np.concatenate(into), np.concatenate(records), count)


def find(run: Map, work: Storage, parts: Sequence[str], method: Method, total: int) -> Found:
    """Every duplicate among the rows of all parts.

    Only groups and pairs, which are few, come together in this process.
    """
    tasks = range(buckets(total))
    same = [group for found in _in_order(run(ExactPass(work, tuple(parts)), tasks)) for group in found]
    if isinstance(method, Exact):
        return Found(same, np.empty(0, PAIR))
    # one of several equal files is enough to look at
    skip: dict[int, list[int]] = {}
    for group in same:
        for part, row in group[1:]:
            skip.setdefault(part, []).append(row)
    if isinstance(method, Perceptual):
        items = range(buckets(total) * len(bands(method.distance)))
        factory = PerceptualPass(work, tuple(parts), method.distance, skip, buckets(total))
        results = list(_in_order(run(factory, items)))
        like = [group for groups, _ in results for group in groups]
        pairs = np.concatenate([np.empty(0, PAIR), *(pairs for _, pairs in results)])
        return Found(_merged(same, like), pairs)
    from pipelines.duplicates.partitions import find_semantic

    return Found(same, find_semantic(run, work, parts, method, skip))


def buckets(total: int) -> int:
    return max(1, -(-total // BUCKET))


@dataclass(frozen=True)
class ExactPass:
    """Rows of equal digests, of one range of digests."""

    work: Storage
    parts: tuple[str, ...]

    def __call__(self) -> Callable[[int], tuple[int, list[list[Place]]]]:
        def equal(bucket: int) -> tuple[int, list[list[Place]]]:
            found = [shuffle.Shuffled(self.work, f"digests/{part}").read(bucket) for part in self.parts]
            part = np.repeat(np.arange(len(found)), [len(records) for records in found])
            records = np.concatenate(found)
            _, which, counts = np.unique(records["digest"], return_inverse=True, return_counts=True)
            many = np.flatnonzero(counts[which] > 1)
            groups: dict[int, list[Place]] = {}
            for n in many:
                groups.setdefault(int(which[n]), []).append((int(part[n]), int(records["row"][n])))
            return bucket, sorted(sorted(group) for group in groups.values())

        return equal


@dataclass(frozen=True)
class PerceptualPass:
    """Rows whose hashes nearly agree and are equal in one band, of one range of the band's values."""

    work: Storage
    parts: tuple[str, ...]
    distance: int
    skip: Mapping[int, Sequence[int]]
    each: int
    """Buckets of a band."""

    def __call__(self) -> Callable[[int], tuple[int, tuple[list[list[Place]], np.ndarray]]]:
        def near(bucket: int) -> tuple[int, tuple[list[list[Place]], np.ndarray]]:
            found = []
            for number, part in enumerate(self.parts):
                records = shuffle.Shuffled(self.work, f"looks/{part}").read(bucket)
                records = records[~np.isin(records["row"], self.skip.get(number, ()))]
                found.append((np.full(len(records), number), records))
            part = np.concatenate([numbers for numbers, _ in found])
            records = np.concatenate([records for _, records in found])
            # of those with one hash the first stands for all: records come in the order of parts and rows
            alike = records[["hash", "mirrored", "mirror"]].copy()
            alike["mirrored"][~records["mirror"]] = 0
            _, firsts, which = np.unique(alike, return_index=True, return_inverse=True)
            groups: dict[int, list[Place]] = {}
            if bucket < self.each:  # every band sees them; once is enough
                lone = np.flatnonzero(~records["mirror"])
                for n in lone:
                    groups.setdefault(int(which[n]), []).append((int(part[n]), int(records["row"][n])))
            firsts = np.sort(firsts)
            part, records = part[firsts], records[firsts]
            home, visitor = np.flatnonzero(~records["mirror"]), np.flatnonzero(records["mirror"])
            left, right = records[home], records[visitor]
            lists = [
                (home[a], home[b], bits)
                for a, b, bits in banded_pairs(
                    left["value"], left["hash"], left["value"], left["hash"], self.distance
                )
            ]
            lists += [
                (home[a], visitor[b], bits)
                for a, b, bits in banded_pairs(
                    left["value"], left["hash"], right["value"], right["mirrored"], self.distance
                )
            ]
            pairs = [
                _pairs(part[a], records["row"][a], part[b], records["row"][b], 1 - bits / 64)
                for a, b, bits in lists
            ]
            like = sorted(sorted(group) for group in groups.values() if len(group) > 1)
            return bucket, (like, unique_pairs(np.concatenate([np.empty(0, PAIR), *pairs])))

        return near


def _pairs(part: Any, row: Any, other_part: Any, other_row: Any, similarity: Any) -> np.ndarray:
    pairs = np.zeros(len(row), PAIR)
    pairs["part"] = np.stack([part, other_part], 1)
    pairs["row"] = np.stack([row, other_row], 1)
    pairs["similarity"] = similarity
    return pairs


def unique_pairs(pairs: np.ndarray) -> np.ndarray:
    """Each pair of different rows once, the smaller place first, in order, with its highest similarity."""
    first = pairs["part"].astype(np.int64) << 32 | pairs["row"]
    low, high = first.min(1, initial=2**62), first.max(1, initial=0)
    order = np.lexsort((-pairs["similarity"], high, low))
    order = order[low[order] != high[order]]
    low, high = low[order], high[order]
    new = np.ones(len(order), bool)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    low, high = low[new], high[new]
    mask = (1 << 32) - 1
    return _pairs(low >> 32, low & mask, high >> 32, high & mask, pairs["similarity"][order[new]])


def _in_order(results: Iterator[tuple[int, Any]]) -> list[Any]:
    return [value for _, value in sorted(results, key=lambda result: result[0])]


def _merged(same: list[list[Place]], like: list[list[Place]]) -> list[list[Place]]:
    """Groups that share a row become one."""
    from pipelines.duplicates.linkage import components

    places = sorted({place for group in (*same, *like) for place in group})
    number = {place: n for n, place in enumerate(places)}
    ties = ((number[group[0]], number[place]) for group in (*same, *like) for place in group[1:])
    groups: dict[int, list[Place]] = {}
    for n, root in enumerate(components(len(places), ties)):
        groups.setdefault(root, []).append(places[n])
    return list(groups.values())


def npy(array: np.ndarray) -> bytes:
    """Also of structured records."""
    sink = io.BytesIO()
    np.lib.format.write_array(sink, array, allow_pickle=False)
    return sink.getvalue()


def read_npy(storage: Storage, name: str) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(storage.read(name)), allow_pickle=False)
