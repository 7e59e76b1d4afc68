from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from cluster.storage import Storage
from pipelines.training import checkpoints
from pipelines.training.checkpoints.part import check_of
from tests.pipelines.training.checkpoints.gangs import equal, everything, mark, tensors, writers, written


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


@pytest.mark.parametrize("world", [1, 2, 5])
def test_returns_what_was_saved(storage: Storage, world: int) -> None:
    written(writers(storage, world), mark(8))

    found = checkpoints.newest(storage, everything)

    assert found is not None
    assert found.mark == mark(8)
    assert found.state == {"at": 8}
    assert equal(found.tensors, tensors(8))


def test_parts_are_safetensors_that_anybody_reads(storage: Storage, tmp_path: Path) -> None:
    checkpoints.save(storage, mark(8), tensors(8), {})
    (file,) = tmp_path.glob("*.safetensors")
    assert equal(load_file(file), tensors(8))


def test_furthest_wins_and_of_one_place_the_highest_lease(storage: Storage) -> None:
    marks = [mark(8), mark(16, lease=3), mark(16, lease=1), mark(12, lease=9)]
    for n, at in enumerate(marks):
        checkpoints.save(storage, at, {"w": torch.tensor(n)}, {})

    found = checkpoints.newest(storage, everything)
    assert found is not None
    assert found.mark == marks[1]
    found = checkpoints.newest(storage, lambda at: at.images_seen < 16)
    assert found is not None
    assert found.mark == marks[3]
    assert checkpoints.newest(storage, lambda at: False) is None


def test_reading_a_missing_one_says_what_to_do(storage: Storage) -> None:
    with pytest.raises(ValueError, match="run again"):
        checkpoints.read(storage, mark(8).name)


def test_a_damaged_one_is_written_anew(storage: Storage, tmp_path: Path) -> None:
    checkpoints.save(storage, mark(8), tensors(1), {})
    next(tmp_path.glob("*.safetensors")).write_bytes(b"torn")

    checkpoints.save(storage, mark(8), tensors(2), {})

    assert equal(checkpoints.read(storage, mark(8).name).tensors, tensors(2))


def old_format(storage: Storage, images_seen: int) -> None:
    """A checkpoint as the first versions wrote it."""
    at, data = mark(images_seen), save({k: t.contiguous() for k, t in tensors(images_seen).items()})
    record = {
        "format": 1,
        "images_seen": images_seen,
        "lease": 1,
        "cooling": False,
        "target": 100,
        "tensors": f"{at.name}.safetensors",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "state": {"at": images_seen},
    }
    record["check"] = check_of(record)
    storage.put_if_absent(f"{at.name}.safetensors", data)
    storage.put_if_absent(at.file, json.dumps(record, sort_keys=True, indent=1).encode())


def test_the_first_format_is_read_checked_and_pruned(storage: Storage, tmp_path: Path) -> None:
    old_format(storage, 8)
    old_format(storage, 16)
    found = checkpoints.newest(storage, everything)
    assert found is not None
    assert found.state == {"at": 16}
    assert equal(found.tensors, tensors(16))

    file = tmp_path / f"{mark(16).name}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    found = checkpoints.newest(storage, everything)
    assert found is not None
    assert equal(found.tensors, tensors(8))

    for n in (24, 32):
        written(writers(storage, 1), mark(n))
    assert {name[:12] for name in storage.list()} == {"000000000024", "000000000032"}


def damage(folder: Path, how: int) -> bool:
    """One of the ways in which the newest checkpoint can be broken; whether its parts are as they were."""
    chance, names = random.Random(how), sorted(path.name for path in folder.iterdir())
    newest = [folder / name for name in names if name.startswith(mark(16).name)]
    index, *parts = sorted(newest, key=lambda path: path.suffix != ".json")
    file = [index, *parts][how % 4]
    data, kind = bytearray(file.read_bytes()), how // 4 % 5
    if kind == 0:
        file.write_bytes(data[: chance.randrange(len(data))])
    elif kind == 1:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
    elif kind == 2:
        file.unlink()
    elif kind == 3:  # another's bytes in its place, whole in themselves
        others = [path for path in folder.iterdir() if path.suffix == file.suffix and path != file]
        file.write_bytes(chance.choice(sorted(others)).read_bytes())
    else:
        file.write_bytes(bytes(data) + b"\0" * chance.randrange(1, 9) if how % 8 < 4 else b"")
    return file is index


@pytest.mark.parametrize("how", range(80))
def test_a_damaged_newest_is_passed_over(tmp_path: Path, how: int) -> None:
    """Where only the index is damaged, another is made; of anything else not a byte is used."""
    storage = Storage.at(tmp_path)
    for n in (8, 16):
        written(writers(storage, 3), mark(n))
    mended, told = damage(tmp_path, how), []

    found = checkpoints.newest(storage, everything, tell=told.append)

    place = 16 if mended else 8
    assert found is not None
    assert found.mark == mark(place)
    assert found.state == {"at": place}
    assert equal(found.tensors, tensors(place))
    assert len(told) == 1
    assert told[0].startswith("The checkpoint at 16 images")
    assert checkpoints.read(storage, found.mark.name).state == found.state


def test_an_index_that_is_lost_is_made_anew_from_the_latest_attempt(storage: Storage, tmp_path: Path) -> None:
    for attempt in ("2" * 16, "1" * 16, "3" * 16):
        ranks = [
            checkpoints.Writer(storage, rank=r, world=2, attempt=attempt, patience=0.0) for r in range(2)
        ]
        for rank in ranks if attempt[0] != "3" else ranks[:1]:  # rank 0 of the third remained alone
            rank._put_part(*prepared(rank, float(attempt[0])))
    told: list[str] = []

    found = checkpoints.newest(storage, everything, tell=told.append)

    assert found is not None
    assert found.tensors["w"].tolist() == [2.0] * 100
    assert "made anew" in told[0]
    assert mark(8).file in storage.list()


def prepared(writer: checkpoints.Writer, value: float):
    """What `Writer.write` hands to its thread."""
    share = writer._layout.share({"w": torch.full((100,), value), "n": torch.tensor(1)})
    writer._memory.take(share, room=10_000)
    return mark(8), [piece for piece, _ in share], {} if writer.rank == 0 else None


def test_a_storage_that_does_not_answer_is_no_reason_to_begin_anew(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(storage, mark(8), tensors(8), {})

    def away(*_: object) -> bytes:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(type(storage), "read_range", away)
    with pytest.raises(OSError, match="nobody answers"):
        checkpoints.newest(storage, everything)
