from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.storage import Storage
from pipelines.training import checkpoints
from pipelines.training.checkpoints import Mark
from tests.pipelines.training.checkpoints.gangs import mark


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


def saved(storage: Storage, *marks: Mark) -> None:
    for at in marks:
        checkpoints.save(storage, at, {"w": torch.tensor(at.images_seen)}, {})


def places(storage: Storage) -> list[int]:
    """Of which an index and all parts are there; nothing else is."""
    names = storage.list()
    found = [n.removesuffix(".json") for n in names if n.endswith(".json") and not n.startswith("lease")]
    assert len(names) == 2 * len(found) + ("lease/1.json" in names)
    return [checkpoints.read(storage, name).mark.images_seen for name in found]


def test_pruning_keeps_the_road_to_longer_runs(storage: Storage) -> None:
    saved(storage, *(mark(n) for n in (10, 20, 30)), *(mark(n, cooling=True) for n in (80, 90, 100)))
    storage.put_if_absent("lease/1.json", b"{}")
    checkpoints.prune(storage)
    assert places(storage) == [20, 30, 90, 100]


def test_a_shorter_training_keeps_its_own_beside_those_of_a_longer_one(storage: Storage) -> None:
    saved(storage, *(mark(n, cooling=True, target=200) for n in (180, 190, 200)), mark(150))
    saved(storage, *(mark(n, cooling=True) for n in (80, 90, 100)))
    checkpoints.prune(storage, written=mark(100, cooling=True))
    assert places(storage) == [90, 100, 150, 190, 200]


def test_what_was_just_written_stays_though_damaged_ones_went_further(
    storage: Storage, tmp_path: Path
) -> None:
    saved(storage, *(mark(n) for n in (30, 40, 20, 24)))
    checkpoints.prune(storage, written=mark(24))
    assert places(storage) == [20, 24, 30, 40]


def test_what_killed_writers_left_goes_when_it_is_passed(storage: Storage) -> None:
    part = "{}.aaaaaaaaaaaaaaaa.00000-of-00002.safetensors"
    for n in (8, 16, 24):
        storage.put_if_absent(part.format(mark(n).name), b"half")
    storage.put_if_absent(f"{mark(12).name}.safetensors", b"of the first format")
    storage.put_if_absent(mark(14).file, b"torn")
    saved(storage, mark(16))
    checkpoints.prune(storage, written=mark(16))
    assert [name for name in storage.list() if "aaaa" in name] == [part.format(mark(24).name)]
    saved(storage, mark(32))
    checkpoints.prune(storage, written=mark(32))
    assert places(storage) == [16, 32]


def test_what_a_higher_lease_wrote_is_left_alone(storage: Storage) -> None:
    saved(storage, mark(8, lease=2), mark(9, lease=2), mark(10, lease=2))
    coming = f"{mark(11, lease=2).name}.aaaaaaaaaaaaaaaa.00001-of-00002.safetensors"
    storage.put_if_absent(coming, b"on its way")
    saved(storage, *(mark(n) for n in (12, 16, 24)))
    checkpoints.prune(storage, written=mark(24))
    assert coming in storage.list()
    storage.delete(coming)
    assert places(storage) == [8, 9, 10, 16, 24]
