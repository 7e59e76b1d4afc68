from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.storage import Storage
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Mark


def mark(images_seen: int, *, lease: int = 1, cooling: bool = False, target: int = 100) -> Mark:
    return Mark(images_seen=images_seen, lease=lease, cooling=cooling, target=target)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {
        "w": torch.full((3, 2), value),
        "bf": torch.tensor([value], dtype=torch.bfloat16),
        "n": torch.tensor(7),
    }


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


def everything(mark: Mark) -> bool:
    return True


def test_returns_what_was_saved(storage: Storage) -> None:
    checkpoint.save(storage, mark(8), tensors(0.5), {"curve": [[8, 0.25]]})

    found = checkpoint.newest(storage, everything)

    assert found is not None
    assert found.mark == mark(8)
    assert found.state == {"curve": [[8, 0.25]]}
    for name, value in tensors(0.5).items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)


def test_furthest_wins_and_of_one_place_the_highest_lease(storage: Storage) -> None:
    for m, value in (
        (mark(8), 1.0),
        (mark(16, lease=1), 2.0),
        (mark(16, lease=3), 3.0),
        (mark(12, lease=9), 4.0),
    ):
        checkpoint.save(storage, m, tensors(value), {})

    found = checkpoint.newest(storage, everything)

    assert found is not None
    assert found.tensors["w"][0, 0] == 3.0


def damage(folder: Path, how: int, chance: random.Random) -> None:
    """One of the ways in which the newest checkpoint can be broken."""
    name = sorted(p.name for p in folder.glob("*.json"))[-1].removesuffix(".json")
    file = folder / (name + (".json" if how % 2 else ".safetensors"))
    data = bytearray(file.read_bytes())
    if how // 2 % 3 == 0:
        file.write_bytes(data[: chance.randrange(len(data))])
    elif how // 2 % 3 == 1:
        position = chance.randrange(len(data))
        data[position] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
    else:
        file.unlink()


@pytest.mark.parametrize("how", range(60))
def test_a_damaged_newest_is_passed_over(tmp_path: Path, how: int) -> None:
    storage = Storage.at(tmp_path)
    checkpoint.save(storage, mark(8), tensors(1.0), {"at": 8})
    checkpoint.save(storage, mark(16), tensors(2.0), {"at": 16})
    damage(tmp_path, how, random.Random(how))

    found = checkpoint.newest(storage, everything)

    assert found is not None
    assert found.mark.images_seen == 8
    assert torch.equal(found.tensors["w"], tensors(1.0)["w"])


def test_a_damaged_one_is_written_anew(storage: Storage, tmp_path: Path) -> None:
    checkpoint.save(storage, mark(8), tensors(1.0), {})
    (tmp_path / (mark(8).name + ".safetensors")).write_bytes(b"torn")

    checkpoint.save(storage, mark(8), tensors(1.0), {})

    assert checkpoint.read(storage, mark(8).name).mark == mark(8)


def test_reading_a_missing_one_says_what_to_do(storage: Storage) -> None:
    with pytest.raises(ValueError, match="run again"):
        checkpoint.read(storage, mark(8).name)


def test_pruning_keeps_the_road_to_longer_runs(storage: Storage) -> None:
    for n in (10, 20, 30):
        checkpoint.save(storage, mark(n), tensors(n), {})
    for n in (80, 90, 100):
        checkpoint.save(storage, mark(n, cooling=True), tensors(n), {})
    storage.put_if_absent("lease/1.json", b"{}")

    checkpoint.prune(storage)

    assert storage.list() == sorted(
        [
            "lease/1.json",
            *(mark(n).name + suffix for n in (20, 30, 90, 100) for suffix in (".json", ".safetensors")),
        ]
    )


def test_writer_keeps_the_values_of_the_moment(storage: Storage) -> None:
    writer = checkpoint.Writer(storage)
    weight = torch.zeros(1000, 100)
    writer.write(mark(8), {"w": weight}, {})
    weight.fill_(9.0)
    writer.wait()

    found = checkpoint.newest(storage, everything)

    assert found is not None
    assert found.tensors["w"].abs().max() == 0


def test_writer_raises_what_went_wrong(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise OSError("disk full")

    monkeypatch.setattr(type(storage), "put_if_absent", fail)
    writer = checkpoint.Writer(storage)
    writer.write(mark(8), tensors(1.0), {})

    with pytest.raises(OSError, match="disk full"):
        writer.wait()


def write_forever(folder: Path, written: Any) -> None:
    storage = Storage.at(folder)
    for n in range(1, 10**6):
        m = mark(n, target=10**7)
        checkpoint.save(storage, m, {"w": torch.full((20_000,), float(n))}, {"n": n})
        checkpoint.prune(storage)
        written.value = n


def test_a_writer_killed_anywhere_leaves_a_whole_one(tmp_path: Path) -> None:
    chance = random.Random(0)
    context = multiprocessing.get_context("fork")
    for attempt in range(8):
        folder, written = tmp_path / str(attempt), context.Value("q", 0, lock=False)
        process = context.Process(target=write_forever, args=(folder, written))
        process.start()
        deadline = time.monotonic() + 30
        while written.value < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()

        found = checkpoint.newest(Storage.at(folder), everything)

        assert found is not None
        assert found.mark.images_seen >= written.value
        assert torch.equal(found.tensors["w"], torch.full((20_000,), float(found.mark.images_seen)))
        assert found.state == {"n": found.mark.images_seen}
