"""Members of a remote dataset: what is read from the store, in how many requests, and how much is used."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.storage import LocalStorage, Storage
from pipelines import members
from pipelines.dataset import Dataset, describe, write_manifest
from pipelines.members import Members
from pipelines.shard_cache import CacheConfig, OpenFiles
from pipelines.shard_index import ShardInfo
from pipelines.shards import write_shard
from pipelines.shuffling import ShuffleConfig
from pipelines.stage import Row, Sample
from pipelines.stream import Line, TrainingStream
from pipelines.training.tasks.rows import Rows

EACH = 160


def far(folder: Path) -> Any:
    """A folder as a store that only answers requests, and notes what it was asked for."""
    near = LocalStorage(folder)

    class Far(Storage):
        url = f"far://{folder}"
        asked: list[tuple[str, int, int]] = []  # noqa: RUF012

        def read(self, name: str) -> bytes:
            return near.read(name)

        def read_range(self, name: str, offset: int, size: int) -> bytes:
            self.asked.append((name, offset, size))
            return near.read_range(name, offset, size)

    for name in Storage.__abstractmethods__ - {"read", "read_range"}:
        setattr(Far, name, getattr(near, name))
    Far.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    return Far()


def data(n: int, size: int = 512) -> bytes:
    return random.Random(n).randbytes(size)


def latents(folder: Path, shards: int) -> Dataset:
    """Shards of 640 rows."""
    infos = []
    for shard in range(shards):
        pairs = [
            (Row(key=f"{n:06d}"), Sample(key=f"{n:06d}", members={"a.npy": data(n)}))
            for n in range(shard * 640, (shard + 1) * 640)
        ]
        infos.append(write_shard(Storage.at(folder), f"{shard:05d}", pairs, split="train"))
    return Dataset(far(folder), write_manifest(Storage.at(folder), describe(infos, stage="test")))


SHUFFLE = ShuffleConfig(window=1024, block=32, lanes=16)
"""As by default: a lane's stretch of a window is as long as two blocks."""


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten windows."""
    return latents(tmp_path_factory.mktemp("long"), 16)


@pytest.mark.parametrize(("ranks", "used", "requests"), [(1, 0.8, 16), (4, 0.92, 14)])
def test_nodes_use_what_they_read_and_read_it_once(
    long: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, used: float, requests: int
) -> None:
    """Of 16 ranks some share a node. A whole block at each end of a stretch would be two thirds used."""
    monkeypatch.setattr(members, "LEAST", 1)
    long.storage.asked.clear()  # type: ignore[attr-defined]
    rows = Rows(
        {"a": long},
        split="train",
        required={"a": "a.npy"},
        cache=CacheConfig(folder=str(tmp_path / "cache"), bytes=1 << 26),
        shuffle=SHUFFLE,
    )
    line = Line(length=len(rows), bounds=rows.starts)
    wanted = set()
    streams = [
        iter(TrainingStream(len(rows), 3, 32, rank=rank, world=16, lines=(line,), shuffle=SHUFFLE))
        for rank in range(ranks)
    ]
    for _ in range(4 * SHUFFLE.window // 32):
        for stream in streams:
            _, indices = next(stream)
            rows.fetch(indices.tolist())
            for n in indices.tolist():
                assert rows.read(n, "a", "a.npy") == data(n)
            wanted.update(indices.tolist())
    asked: list[tuple[str, int, int]] = long.storage.asked  # type: ignore[attr-defined]
    assert len(wanted) == 4 * 64 * ranks
    assert len(set(asked)) == len(asked)
    assert 1024 * len(wanted) / sum(size for *_, size in asked) > used
    assert len(asked) / len(wanted) < requests / 100
    # A range begins with a member and ends with one: of 512 bytes, between headers of 512.
    assert all(offset % 1024 == 512 and size % 1024 == 512 for _, offset, size in asked)


@pytest.mark.parametrize("bytes_", [10, 1 << 14, 1 << 17, 1 << 19, 1 << 22])
@pytest.mark.parametrize("samples", [1, 7, 500, 1023])
def test_parts_tile_the_blocks(tmp_path: Path, bytes_: int, samples: int) -> None:
    given = latents(tmp_path / "a", 1)
    one = Members(given, columns=("a.npy",), cache=None, block=100, files=OpenFiles())
    spans = one.spans("00000")
    column = {"count": samples, "bytes": samples * bytes_, "digest": "0" * 64}
    info = ShardInfo(
        name="0", split="train", samples=samples, rejected=0, bytes=0, sha256="", columns={"a.npy": column}
    )
    wide = members.Spans(**{**spans.__dict__, "info": info})
    parts, blocks = one._parts(wide), -(-samples // 100)
    whose = [one._part(wide, n) for n in range(samples)]
    for part in range(parts):
        mine = [n for n in range(samples) if whose[n] == part]
        assert mine == list(range(part * samples // parts, (part + 1) * samples // parts))
    # A block is cut into parts of its own, of few bytes into none, of many into such as fit in memory.
    assert parts % blocks == 0
    assert np.array_equal(
        [part * blocks // parts for part in whose],
        [((n + 1) * blocks - 1) // samples for n in range(samples)],
    )
    block = samples * bytes_ // blocks
    assert (parts == blocks) is (block < 2 * members.LEAST)
    assert block * blocks / parts <= members.MOST * 1.01
    assert parts <= members.PARTS * blocks or block > members.PARTS * members.MOST


def texts(folder: Path, *, last: bool) -> Dataset:
    """Each row's caption with its states, every third one's that of the row before; `last`: all states behind
    the last row, as tars had them once."""
    infos = []
    for shard in range(2):
        pairs, behind = [], {}
        for n in range(shard * EACH, (shard + 1) * EACH):
            own = {
                f"{caption(n)}.{suffix}": data(n - (n % 3 == 2), size) for suffix, size in SUFFIXES.items()
            }
            behind |= own
            shared = own if not last else behind if n == (shard + 1) * EACH - 1 else {}
            key = f"k{n:06d}"
            pairs.append((Row(key=key), Sample(key=key, members={"text.json": JSON}, shared=shared)))
        infos.append(write_shard(Storage.at(folder), f"{shard:05d}", pairs, split="train"))
    return Dataset(far(folder), write_manifest(Storage.at(folder), describe(infos, stage="test")))


JSON = b"[%s]" % (b" " * 400)
SUFFIXES = {"text.npy": 3000, "pooled.npy": 100}


def caption(n: int) -> str:
    return f"{n - (n % 3 == 2):020d}"


@pytest.mark.parametrize("last", [False, True])
def test_captions_states_are_read_with_their_rows(tmp_path: Path, last: bool) -> None:
    given = texts(tmp_path / "text", last=last)
    rows = Rows(
        {"text": given},
        split="train",
        required={},
        reads={"text": ("text.json",)},
        shared=("text",),
        cache=CacheConfig(folder=str(tmp_path / "cache"), bytes=1 << 26),
        shuffle=ShuffleConfig(window=64, block=40, lanes=8),
    )
    order = random.Random(1).sample(range(2 * EACH), 2 * EACH)
    for n in order:
        rows.fetch([n])
        assert rows.read(n, "text", "text.json") == JSON
        for suffix, size in SUFFIXES.items():
            found = rows.read_shared(n, "text", f"{caption(n)}.{suffix}")
            assert found == data(n - (n % 3 == 2), size)
    with pytest.raises(KeyError):
        rows.read_shared(0, "text", f"{'7' * 20}.text.npy")
    asked: list[tuple[str, int, int]] = given.storage.asked  # type: ignore[attr-defined]
    blocks = 2 * EACH // 40
    if last:
        assert len(asked) == blocks + 2 * len(order)
    else:
        # Each block once; and alone what the last row has first, and what lies in the block before.
        shared = sum(n % 40 == 0 and n % 3 == 2 for n in order) + 2
        assert blocks < len(asked) <= blocks + 2 * shared
