"""Encode's shards are the same bytes from one worker, from two or three, and after one was killed."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import fresh
from tests.pipelines import several, tiny

STAGE: dict[str, Any] = {"micro_batch": 4, "flips": True, "also": (8,), "precision": "bfloat16"}
SHARDS = ("00000", "00001", "00002")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    several.images(folder / "images")
    tiny.autoencoder(folder / "autoencoder")
    return folder


def work(given: str, output: str, names: Sequence[str], deadly: str | None = None) -> None:
    """A worker: makes some shards, in that order; dies within writing one of them if told to."""
    import torch

    from cluster.storage import Storage
    from pipelines.dataset import Dataset
    from pipelines.models import SnapshotFolder
    from pipelines.shards import write_shard
    from pipelines.stages.encode import Encode
    from tests.driver import Death

    torch.set_num_threads(1)
    if deadly:
        Death(file=deadly, moment="within").arm(Path(output))
    place = Storage.at(given)
    inputs = {
        "images": Dataset.open(place.folder("images")),
        "autoencoder": SnapshotFolder.open(place.folder("autoencoder")),
    }
    stage = Encode(images="images", autoencoder="vae", **STAGE)
    make = stage.open(inputs)
    for shard in sorted(
        stage.plan(inputs), key=lambda one: names.index(one.name) if one.name in names else 99
    ):
        if shard.name in names and not Storage.at(output).exists(f"{shard.name}.parquet"):
            rows = stage.rows(inputs, shard)
            pairs = zip(rows, make(shard, rows), strict=True)
            write_shard(Storage.at(output), shard.name, pairs, split=shard.split)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*"))}


def test_any_number_of_workers_and_a_kill(given: Path, tmp_path: Path) -> None:
    shares: dict[str, list[list[str]]] = {
        "one": [list(SHARDS)],
        "two": [["00002", "00000"], ["00001"]],
        "three": [[name] for name in SHARDS],
    }
    pool = [
        fresh.start(work, str(given), str(tmp_path / name), share)
        for name, parts in shares.items()
        for share in parts
    ]
    killed = fresh.start(work, str(given), str(tmp_path / "killed"), SHARDS, "00001.tar")
    for process in (*pool, killed):
        process.join(60)
    assert [process.exitcode for process in pool] == [0] * len(pool)
    assert killed.exitcode == -signal.SIGKILL
    assert "00001.parquet" not in files(tmp_path / "killed")
    work(str(given), str(tmp_path / "killed"), SHARDS)

    expected = files(tmp_path / "one")
    assert set(expected) == {f"{name}.{kind}" for name in SHARDS for kind in ("tar", "parquet")}
    for name in ("two", "three", "killed"):
        assert files(tmp_path / name) == expected
