"""What the runner does with outputs that were damaged after they were committed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.runner.execute import StageError
from tests.pipelines.toys import World

DAMAGES: dict[str, Callable[[Path], None]] = {
    "tar cut": lambda shard: _cut(shard.with_suffix(".tar")),
    "tar gone": lambda shard: shard.with_suffix(".tar").unlink(),
    "index flipped": lambda shard: _flip(shard.with_suffix(".parquet")),
    "index cut": lambda shard: _cut(shard.with_suffix(".parquet")),
    "index gone": lambda shard: shard.with_suffix(".parquet").unlink(),
    "tar flipped": lambda shard: _flip(shard.with_suffix(".tar")),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "tar flipped"])
def test_the_runner_makes_a_damaged_shard_again(tmp_path: Path, kind: str) -> None:
    world = World(tmp_path)
    world.numbers(*range(25))
    world.run(until="numbers")
    unbroken = world.files()
    folder = next((tmp_path / "store" / "numbers").iterdir())
    (folder / "manifest.json").unlink()
    DAMAGES[kind](folder / "00001")
    before = len(world.log_from())
    assert world.run(until="numbers") == ["numbers"]
    assert world.files() == unbroken
    made = {words[1] for words in world.log_from(before)}
    assert made == {f"{n:03d}" for n in range(10, 20)}, "the other shards stay"


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_runner_refuses_a_damaged_shard_of_a_finished_stage_and_its_advice_helps(
    tmp_path: Path, kind: str
) -> None:
    world = World(tmp_path)
    world.numbers(*range(25))
    world.run(until="twice")
    unbroken = world.files()
    folder = next((tmp_path / "store" / "numbers").iterdir())
    shutil.rmtree(next((tmp_path / "store" / "times").iterdir()))
    DAMAGES[kind](folder / "00001")
    with pytest.raises(StageError, match=r"00001.*(manifest|missing)"):
        world.run(until="twice")
    for name in ("00001.tar", "00001.parquet", "manifest.json"):
        (folder / name).unlink(missing_ok=True)
    assert world.run(until="twice") == ["numbers", "twice"]
    assert world.files() == unbroken


@pytest.mark.parametrize("kind", DAMAGES)
def test_of_a_damaged_earlier_output_nothing_is_copied(tmp_path: Path, kind: str) -> None:
    """More numbers make another output, which copies what it can of the first one's samples."""
    world, apart = World(tmp_path / "one"), World(tmp_path / "other")
    world.numbers(*range(25))
    world.run(until="numbers")
    DAMAGES[kind](next((world.root / "store" / "numbers").iterdir()) / "00001")
    for each in (world, apart):
        each.numbers(*range(26))
    before = len(world.log_from())
    world.run(until="numbers")
    made = {words[1] for words in world.log_from(before)}
    assert made == {*(f"{n:03d}" for n in range(10, 20)), "025"}, "only what is damaged, and what is new"
    apart.run(until="numbers")
    assert set(apart.files().items()) <= set(world.files().items())
