"""Passes over buckets find what comparing all finds, whatever the buckets and the order of tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.storage import Storage
from pipelines.duplicates import groups, partitions, passes, semantic, shuffle
from pipelines.duplicates.methods import Exact, Method, Perceptual, Semantic
from pipelines.duplicates.perceptual import Look
from pipelines.duplicates.verification import SIDE

PARTS = ["00000", "00001", "00002"]


def here(factory: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
    call = factory()
    return (call(item) for item in reversed(items))


def rows(digests: Sequence[str]) -> np.ndarray:
    found = np.zeros(len(digests), passes.ROW)
    found["digest"] = [hashlib.sha256(d.encode()).hexdigest() if d else "" for d in digests]
    return found


def find(work: Storage, method: Method, total: int) -> tuple[set[tuple[int, int]], list[list[int]]]:
    """Pairs and groups by numbers that count on over the parts."""
    found = passes.find(here, work, PARTS, method, total)
    sizes = [len(passes.read_npy(work, f"rows/{part}.npy")) for part in PARTS]
    starts = np.cumsum([0, *sizes])
    pairs = starts[found.pairs["part"]] + found.pairs["row"]
    same = sorted(sorted(int(starts[part]) + row for part, row in group) for group in found.same)
    return {(int(a), int(b)) for a, b in pairs}, same


@pytest.mark.parametrize("bucket", [4, 1000])
def test_equal_digests_meet_over_parts(tmp_path: Path, bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "BUCKET", bucket)
    work = Storage.at(tmp_path)
    for part, names in zip(PARTS, (["a", "b", "", "c"], ["a", "d", "c"], ["a", "", "e"]), strict=True):
        passes.write_rows(work, part, rows(names), 10)
    assert find(work, Exact(), 10) == (set(), [[0, 4, 7], [3, 6]])


@pytest.mark.parametrize("distance", [0, 4, 7])
@pytest.mark.parametrize("bucket", [30, 1000])
def test_near_hashes_are_those_of_comparing_all(
    tmp_path: Path, distance: int, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "BUCKET", bucket)
    draw = np.random.default_rng(distance)
    hashes = [int(h) for h in draw.integers(0, 2**63, 20, dtype=np.uint64)]
    hashes += [
        h ^ sum(1 << int(bit) for bit in draw.choice(64, bits, replace=False))
        for h in hashes[:]
        for bits in (0, 0, 2, distance, distance + 1)
    ]
    looks = [Look(h, int(m)) for h, m in zip(hashes, draw.integers(0, 2**63, len(hashes)), strict=True)]
    # some are another's mirror image
    looks[7], looks[33] = Look(looks[7].hash, looks[50].hash ^ 1), Look(looks[33].hash, looks[99].hash)
    work, n = Storage.at(tmp_path), len(looks)
    for number, part in enumerate(PARTS):
        mine = dict(enumerate(looks[number * n // 3 : (number + 1) * n // 3]))
        passes.write_looks(work, part, mine, distance, n)
        passes.write_rows(work, part, rows([f"{part} {row}" for row in mine]), n)
    pairs, same = find(work, Perceptual(distance=distance), n)
    heads = {n: group[0] for group in same for n in group}
    near = {
        (a, b)
        for b in range(n)
        for a in range(n)
        if min((looks[a].hash ^ other).bit_count() for other in (looks[b].hash, looks[b].mirrored))
        <= distance
    }
    assert {n for group in same for n in group} == {
        n for n in range(n) if sum(looks[n].hash == other.hash for other in looks) > 1
    }
    # a pair of the first of a group stands for all of it; one may be a mirror image of its own group's
    found = {frozenset((heads.get(a, a), heads.get(b, b))) for a, b in pairs}
    hashed = {(a, b) for a, b in near if (looks[a].hash ^ looks[b].hash).bit_count() <= distance}
    wanted = {frozenset((heads.get(a, a), heads.get(b, b))) for a, b in hashed}
    mirror = {frozenset((heads.get(a, a), heads.get(b, b))) for a, b in near}
    assert {pair for pair in wanted if len(pair) == 2} <= found <= mirror
    assert frozenset((heads.get(33, 33), heads.get(99, 99))) in found


def vectors(count: int, twins: int, seed: int) -> np.ndarray:
    """fp16 [count, 32] of length 1, in crowds; the last `twins` are near copies of the first."""
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(40, 32))[draw.integers(0, 40, count)] + 1.2 * draw.normal(size=(count, 32))
    found[count - twins :] = found[:twins] + 0.5 * draw.normal(size=(twins, 32))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def written(work: Storage, found: np.ndarray) -> None:
    for part, piece in zip(PARTS, np.array_split(found, len(PARTS)), strict=True):
        partitions.write_features(work, part, range(len(piece)), piece)
        passes.write_rows(work, part, rows([f"{part} {n}" for n in range(len(piece))]), len(found))


def test_partitions_find_what_one_index_finds(tmp_path: Path) -> None:
    found = vectors(6000, 600, 0)
    whole = found.astype(np.float32)
    wanted = {(int(a), int(b)) for a, b in np.argwhere(np.triu(whole @ whole.T >= 0.85, 1))}
    assert len(wanted) > 500
    results = []
    for size in (500, 10_000):
        work = Storage.at(tmp_path / str(size))
        written(work, found)
        results.append(find(work, Semantic(cosine=0.85, verify=None, partition=size, probes=6), 6000)[0])
    parts, one = results
    assert one == wanted
    assert parts <= wanted
    assert len(parts) >= 0.999 * len(wanted)


def test_crowds_of_copies_are_found_whole(tmp_path: Path) -> None:
    """Sixty copies of one picture, of which two neighbours at a time are looked at."""
    draw = np.random.default_rng(0)
    found = draw.normal(size=(90, 32))
    found[:60] = found[0] + 0.01 * draw.normal(size=(60, 32))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    work = Storage.at(tmp_path)
    written(work, found.astype(np.float16)[draw.permutation(90)])
    pairs, _ = find(work, Semantic(cosine=0.9, verify=None, neighbours=2), 90)
    first = min(a for a, _ in pairs)
    assert sum(first in pair for pair in pairs) == 59


def test_a_task_holds_its_piece_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One crowd takes a whole partition: it is searched in pieces, to the same pairs."""
    draw = np.random.default_rng(0)
    found = 1 + 0.6 * draw.normal(size=(900, 32))
    found = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)
    sizes: list[int] = []
    opened = semantic.Homes.__init__

    def watched(self: semantic.Homes, width: int, blocks: Any) -> None:
        opened(self, width, blocks)
        sizes.append(len(self))

    monkeypatch.setattr(semantic.Homes, "__init__", watched)
    work = Storage.at(tmp_path)
    written(work, found)
    method = Semantic(cosine=0.8, verify=None, partition=100, probes=100, neighbours=900)
    pairs, _ = find(work, method, 900)
    whole = found.astype(np.float32)
    assert pairs == {(int(a), int(b)) for a, b in np.argwhere(np.triu(whole @ whole.T >= 0.8, 1))}
    assert max(sizes) <= 100
    assert sum(sizes) == 900


def test_records_come_back_by_bucket(tmp_path: Path) -> None:
    work = Storage.at(tmp_path)
    table = np.zeros(5, np.dtype([("row", "i4"), ("vector", "f2", (3,))]))
    table["row"] = range(5)
    shuffle.write(work, "x/y", np.array([2, 0, 2, 2, 0]), table, 4)
    file = shuffle.Shuffled(work, "x/y")
    assert file.sizes.tolist() == [2, 0, 3, 0]
    assert [file.read(n)["row"].tolist() for n in range(4)] == [[1, 4], [], [0, 2, 3], []]
    assert file.read(2, 1, 2)["row"].tolist() == [2]
    assert file.read(2, 2, 99)["row"].tolist() == [3]


def test_groups_join_equal_bytes_and_verified_pairs() -> None:
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 255, (4, 2, 8, 8)).astype(np.uint8).repeat(8, 2).repeat(8, 3)
    assert pictures.shape[-1] == SIDE
    # 1 is a copy of 0, 2 near it by features and another picture, 4 mirrors 3, 5 has no features, 6 4's bytes
    seen = pictures[[0, 0, 1, 2, 2, 3, 2]].copy()
    seen[4] = seen[4, :, :, ::-1]
    features = np.zeros((7, 2), np.float16)
    features[[0, 1, 2]], features[[3, 4]] = (1, 0), (0, 1)
    digests = ["a", "b", "c", "d", "e", "f", "e"]
    looks: list[Look | None] = [None] * 7
    found = groups(digests, looks, 4, near=Semantic(), features=features, thumbnails=seen)
    assert found == [0, 0, 2, 3, 3, 5, 3]
    assert groups(digests, [Look(1, 2)] * 7, 4) == [0] * 7
    with pytest.raises(ValueError, match="need features"):
        groups(digests, looks, 4, near=Semantic())
