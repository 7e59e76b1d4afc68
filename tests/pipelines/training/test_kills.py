"""Trainings that are killed, and told to end, at any point: they come to the bits of one that never was."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import LocalStorage, Storage
from pipelines.training import loop
from pipelines.training.checkpoints import newest
from tests.pipelines.training import gangs
from tests.pipelines.training.test_injections import poisoned


def die_in_step(step: int) -> None:
    """Between the forward pass and the optimizer's step, in the step of that number in this process."""
    seen, losses = [], gangs.Toy.losses

    def dying(self: gangs.Toy, module: Any, share: Any) -> Any:
        found = losses(self, module, share)
        seen.append(share)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    gangs.Toy.losses = dying


def die_after_step(step: int) -> None:
    seen, whole = [], loop.Loop.step

    def dying(self: loop.Loop, progress: Any) -> None:
        whole(self, progress)
        seen.append(progress)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.Loop.step = dying


def die_in_write(number: int) -> None:
    """Inside the write of that number to the folder of checkpoints, a part of it on disk."""
    write, seen = LocalStorage._write, []

    def dying(self: LocalStorage, path: Path, source: Any) -> Path:
        if "checkpoints" in path.parts:
            seen.append(path)
            if len(seen) == number:
                data = bytes(source)
                path.with_name(f".{path.name}.dead.partial").write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return write(self, path, source)

    LocalStorage._write = dying


def die_in_delete(number: int) -> None:
    """Where older checkpoints are deleted."""
    delete, seen = LocalStorage.delete, []

    def dying(self: LocalStorage, name: str) -> None:
        seen.append(name)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        delete(self, name)

    LocalStorage.delete = dying


def harmless(rank: int) -> None:
    """Nothing."""


HARMFUL = poisoned(range(41, 53), 0)
"""A dozen batches that a training has to go back from, and leave out."""


def killed(folder: Path, *, world: int, seed: int, kills: int, harm: gangs.Arrange) -> None:
    """A training that dies at random places until it has died often enough, and then ends."""
    chance, deaths = random.Random(seed), []
    while len(deaths) < kills:
        who, how = chance.randrange(world), chance.choice([die_in_step, die_after_step, die_in_write])
        how = die_in_delete if chance.random() < 0.15 else how
        who = 0 if how is die_in_delete else who
        number = chance.randrange(1, 40 if how in (die_in_step, die_after_step) else 14)

        def arrange(
            rank: int, who: int = who, how: Callable[[int], None] = how, number: int = number
        ) -> None:
            harm(rank)
            if rank == who:
                how(number)

        codes = gangs.gang(world, folder, gangs.training(), arrange=arrange, lease=1 + len(deaths))
        if not any(codes):
            # It ended before the death that was meant for it: that training is over.
            break
        # The others are killed, or fail for want of it before that.
        assert codes[who] == -signal.SIGKILL, (codes, seed, who, how, number)
        deaths.append((how.__name__, number))
    assert gangs.gang(world, folder, gangs.training(), arrange=harm, lease=99) == [0] * world
    (folder / "deaths.txt").write_text("\n".join(f"{name} {number}" for name, number in deaths))


def kill_all(
    folder: Path, world: int, *, trainings: int = 1, kills: int = 3, harm: gangs.Arrange = harmless
) -> None:
    assert gangs.gang(world, folder / f"{world}", gangs.training(), arrange=harm) == [0] * world
    for seed in range(trainings):
        killed(folder / f"{world}-{seed}", world=world, seed=100 * world + seed, kills=kills, harm=harm)


def final(folder: Path) -> dict[str, str]:
    """All tensors of the last checkpoint, and the snapshot, by digest."""
    found = newest(Storage.at(folder / "checkpoints"), lambda mark: True)
    assert found is not None
    assert found.mark.images_seen == 100 * gangs.BATCH
    digests = {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in ((name, found.tensors[name].contiguous()) for name in found.tensors)
    }
    return digests | {
        "snapshot": hashlib.sha256((folder / "output" / "weights.safetensors").read_bytes()).hexdigest()
    }


def check(unbroken: Path, broken: Path, world: int) -> int:
    """How many deaths a training survived to the same bits."""
    assert final(broken) == final(unbroken)
    for rank in range(world):
        wanted = gangs.losses(unbroken, rank)
        taken = gangs.losses(broken, rank)
        # Steps that were lost are taken again, and each time are what they were.
        assert set(taken) == set(wanted)
    for fact in ("curve", "guard", "skipped"):
        assert gangs.result(broken).get(fact) == gangs.result(unbroken).get(fact)
    return len((broken / "deaths.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def remains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the trainings of `make test` leave, all made by one process."""
    folder = tmp_path_factory.mktemp("remains")
    code = (
        "test_kills.kill_all(folder / 'killed', 1); test_kills.stop_all(folder / 'stopped', 1); "
        "test_kills.kill_all(folder / 'killed', 2, harm=test_kills.HARMFUL)"
    )
    gangs.afresh(code, folder, timeout=280)
    return folder


def test_a_killed_training_is_the_unbroken_one_to_the_bit(remains: Path) -> None:
    folder = remains / "killed"
    assert [place for place, _ in gangs.losses(folder / "1", 0)] == list(range(8, 801, 8))
    assert check(folder / "1", folder / "1-0", 1) >= 2


def test_so_is_one_that_had_to_go_back(remains: Path) -> None:
    folder = remains / "killed"
    ((begin, end, _),) = gangs.result(folder / "2")["guard"]["left_out"]
    assert (begin, end) == (41 * gangs.BATCH, 53 * gangs.BATCH)
    assert check(folder / "2", folder / "2-0", 2) >= 2


@pytest.mark.chaos
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("harm", ["harmless", "HARMFUL"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_fifty_kills(world: int, harm: str, tmp_path: Path) -> None:
    trainings = 14 if harm == "harmless" else 4
    code = f"test_kills.kill_all(folder, {world}, trainings={trainings}, kills=5, harm=test_kills.{harm})"
    gangs.afresh(code, tmp_path, timeout=2900)
    survived = [check(tmp_path / f"{world}", tmp_path / f"{world}-{n}", world) for n in range(trainings)]
    assert sum(survived) >= (50 if harm == "harmless" else 12), survived


def stopped(folder: Path, *, world: int, seed: int) -> None:
    """Told to end at random steps, each time by a signal to one rank, until it is at its end."""
    chance, stops = random.Random(seed), 0
    while True:
        who, step = chance.randrange(world), chance.randrange(1, 60)

        def arrange(rank: int, who: int = who, step: int = step) -> None:
            seen, losses = [], gangs.Toy.losses

            def asked(self: gangs.Toy, module: Any, share: Any) -> Any:
                seen.append(share)
                if rank == who and len(seen) == step:
                    os.kill(os.getpid(), signal.SIGTERM)
                return losses(self, module, share)

            gangs.Toy.losses = asked

        train = gangs.training(checkpoint_every=None)
        codes = gangs.gang(world, folder, train, arrange=arrange, lease=1 + stops)
        if codes == [0] * world:
            break
        assert codes == [gangs.PAUSED] * world, codes
        stops += 1
    (folder / "deaths.txt").write_text("stop\n" * stops)


def stop_all(folder: Path, trainings: int) -> None:
    for world in (1, 2):
        assert gangs.gang(world, folder / f"{world}", gangs.training()) == [0] * world
        for seed in range(trainings):
            stopped(folder / f"{world}-{seed}", world=world, seed=seed)


def check_stops(folder: Path, trainings: int) -> dict[int, int]:
    counts = {1: 0, 2: 0}
    for world in counts:
        for seed in range(trainings):
            broken = folder / f"{world}-{seed}"
            counts[world] += check(folder / f"{world}", broken, world)
            for rank in range(world):  # no step is lost, so none is taken twice
                assert gangs.losses(broken, rank) == gangs.losses(folder / f"{world}", rank)
    return counts


def test_told_to_end_it_loses_no_step(remains: Path) -> None:
    assert min(check_stops(remains / "stopped", 1).values()) >= 2


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_told_to_end_twenty_times(tmp_path: Path) -> None:
    gangs.afresh("test_kills.stop_all(folder, 10)", tmp_path, timeout=1400)
    assert min(check_stops(tmp_path, 10).values()) >= 20
