"""Harm that is done to one rank of a training: what becomes of it, and that all agree."""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.training import loop
from pipelines.training.config import DDPConfig, FSDPConfig, GuardConfig, ParallelConfig
from pipelines.training.guard import LOOK
from pipelines.training.job import Training
from pipelines.training.replicas import checksum, odd
from tests.pipelines.training import gangs
from tests.pipelines.training.test_guard import BATCH, STEPS, training

Harms = Callable[[int], None]


def poisoned(steps: range, who: int, poison: float = torch.nan, *, of: str = "data") -> Harms:
    """Steps in which one rank's data, gradient or loss is multiplied, each time that they are taken."""

    def arrange(rank: int) -> None:
        losses = gangs.Toy.losses

        def harmed(self: gangs.Toy, module: Any, share: Any) -> Any:
            if rank != who or int(share.at[0]) // BATCH not in steps:
                return losses(self, module, share)
            if of == "data":
                share = dataclasses.replace(share, x=share.x * torch.tensor([1, poison, 1, 1]))
            found = losses(self, module, share)
            if of == "gradient":
                found.register_hook(lambda gradient: gradient * poison)
            return found * poison if of == "loss" else found

        gangs.Toy.losses = harmed

    return arrange


def damaged(step: int, who: int, folder: Path, by: float = torch.nan, *, stored: bool = False) -> Harms:
    """One rank's weights, once, after the step of that number; before its checkpoint if `stored`."""

    def arrange(rank: int) -> None:
        once, whole = folder / "damaged", loop.Loop.step

        def harmed(self: loop.Loop, progress: Any) -> None:
            if not stored:
                whole(self, progress)
            if rank == who and progress.images_seen == (step + 1) * BATCH and not once.exists():
                once.touch()
                with torch.no_grad():
                    next(iter(self.state.module.parameters())).mul_(by)
            if stored:
                whole(self, progress)

        loop.Loop.step = harmed

    return arrange


def flipped(step: int, who: int, folder: Path) -> Harms:
    """One bit of one rank's weights, once, after the step of that number: the last of a number's 23."""

    def arrange(rank: int) -> None:
        once, whole = folder / "flipped", loop.Loop.step

        def harmed(self: loop.Loop, progress: Any) -> None:
            whole(self, progress)
            if rank == who and progress.images_seen == (step + 1) * BATCH and not once.exists():
                once.touch()
                weight = next(iter(self.state.module.parameters())).detach().view(torch.int32)
                weight[step % 24, step % 4] ^= 1

        loop.Loop.step = harmed

    return arrange


KINDS = ("data", "gradient", "loss", "weights", "shock", "range", "often")


def injected(folder: Path, kind: str, seed: int, train: Training, *, world: int = 2) -> None:
    """A training with one harm, and what should be found of it."""
    chance = random.Random(seed)
    step, who = chance.randrange(40, 120), chance.randrange(world)
    folder.mkdir(parents=True)
    once, noticed = range(step, step + 1), (step + 10 + LOOK) // LOOK * LOOK
    bad, out = [[step * BATCH, (step + 1) * BATCH]], []
    if kind == "range":  # more than patience, less than what is done before it is noticed
        length = chance.randrange(10, 14)
        arrange = poisoned(range(step, step + length), who)
        bad, out = [], [[step * BATCH, (step + length) * BATCH]]
    elif kind == "often":
        arrange = poisoned(range(step, step + 60, 3), who, torch.inf, of="gradient")
        bad = [[n * BATCH, (n + 1) * BATCH] for n in range(step, step + 60, 3)]
    elif kind in ("weights", "shock"):
        arrange = damaged(step, who, folder, torch.nan if kind == "weights" else 1e4)
        noticed = next(n for n in range(0, STEPS, LOOK) if n - LOOK - (step + 1) >= 10)
        bad, out = [], [[(step + 1) * BATCH, noticed * BATCH]]
    else:
        arrange = poisoned(
            once, who, 1000.0 if kind == "loss" else torch.inf if kind == "gradient" else torch.nan, of=kind
        )
    assert gangs.gang(world, folder, train, arrange=arrange) == [0] * world
    (folder / "expected.json").write_text(json.dumps([bad, out]))


DDP = DDPConfig()


def inject(
    folder: Path,
    cases: list[tuple[str, int]],
    *,
    steps: int = STEPS,
    parallel: ParallelConfig = DDP,
) -> None:
    train = training(guard=GuardConfig(spike=50.0), images_seen=steps * BATCH, parallel=parallel)
    assert gangs.gang(2, folder / "clean", train) == [0, 0]
    for kind, seed in cases:
        injected(folder / f"{kind}-{seed}", kind, seed, train)


def check(folder: Path, case: str) -> None:
    clean, harmed = gangs.result(folder / "clean"), gangs.result(folder / case)
    bad, out = json.loads((folder / case / "expected.json").read_text())
    said = harmed["guard"]
    assert said.get("bad", []) == bad, said
    assert [entry[:2] for entry in said.get("left_out", [])] == out, said
    assert harmed["skipped"] == sum((end - begin) // BATCH for begin, end in bad)
    after = clean["curve"][-1][1]
    assert after["val_loss"] < 0.02 * gangs.BEFORE
    assert harmed["curve"][-1][1]["val_loss"] == pytest.approx(after["val_loss"], rel=0.02)
    notes = [note for note in harmed["notes"] if note.startswith("Goes back to")]
    assert len(notes) == len(out)
    # All ranks took the same steps, of which they heard the same norms.
    norms = [[(n, text.split()[1]) for n, text in gangs.losses(folder / case, rank)] for rank in range(2)]
    assert norms[0] == norms[1]


FEW = [("range", 1), ("shock", 2)]


@pytest.fixture(scope="module")
def remains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the trainings of `make test` leave, all made by one process."""
    folder = tmp_path_factory.mktemp("remains")
    code = f"test_injections.inject(folder / 'injected', {FEW})"
    code += "; test_injections.flip(folder / 'flipped', 2, 1)"
    code += "; test_injections.hide(folder / 'hidden')"
    gangs.afresh(code, folder, timeout=280)
    return folder


def test_harm_on_one_rank_is_recovered_from_by_all(remains: Path) -> None:
    for kind, seed in FEW:
        check(remains / "injected", f"{kind}-{seed}")


def hide(folder: Path) -> None:
    """A training whose harm is in a checkpoint before it is noticed."""
    folder.mkdir()
    assert gangs.gang(1, folder, training(), arrange=damaged(99, 0, folder, stored=True)) == [0]


def test_a_checkpoint_that_holds_the_harm_is_gone_behind(remains: Path) -> None:
    said = gangs.result(remains / "hidden")
    first, second = said["guard"]["left_out"]
    # Retention has kept the one that holds it and the one before.
    assert (first[0], second[0], second[1] > first[1]) == (800, 640, True)
    assert [note.split(".")[0] for note in said["notes"] if note.startswith("Goes")] == [
        "Goes back to 800 images",
        "Goes back to 640 images",
    ]
    assert said["curve"][-1][1]["val_loss"] < 0.02 * gangs.BEFORE


COMPARED = GuardConfig(replicas_every=10 * BATCH)


def flip(folder: Path, world: int, count: int) -> None:
    """Trainings of which one rank's weights differ in a bit at some time."""
    train = gangs.training(guard=COMPARED)
    assert gangs.gang(world, folder / "clean", train) == [0] * world
    for seed in range(count):
        chance, broken = random.Random(seed), folder / f"{seed}"
        broken.mkdir()
        step, who = chance.randrange(10, 80), chance.randrange(world)
        arrange = flipped(step, who, broken)
        assert gangs.gang(world, broken, train, arrange=arrange) == [0] * world
        (broken / "expected.json").write_text(json.dumps([step, who]))


def check_flips(folder: Path, count: int) -> None:
    clean = folder / "clean"
    assert "guard" not in gangs.result(clean)  # no false alarm
    for broken in (folder / f"{seed}" for seed in range(count)):
        step, who = json.loads((broken / "expected.json").read_text())
        (found,) = gangs.result(broken)["guard"]["replicas"]
        # After the flip, at the next checkpoint or comparison.
        assert (step + 1) * BATCH < found["images_seen"] <= (step + 1 + 10) * BATCH
        assert found["ranks"] == [who]
        weights = [(at / "output" / "weights.safetensors").read_bytes() for at in (broken, clean)]
        assert weights[0] == weights[1]


def test_a_flipped_bit_on_one_of_two_ranks_is_found_undone_and_laid_at_its_door(remains: Path) -> None:
    check_flips(remains / "flipped", 1)


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("world", [2, 3])
def test_fifteen_flipped_bits(world: int, tmp_path: Path) -> None:
    gangs.afresh(f"test_injections.flip(folder, {world}, 15)", tmp_path, timeout=1400)
    check_flips(tmp_path, 15)


def test_a_checksum_sees_every_single_bit() -> None:
    tensors = {"a": torch.randn(5, 3), "b": torch.ones(4, dtype=torch.bfloat16), "n": torch.tensor(7)}
    sums = {int(checksum(tensors))}
    for name, kind in (("a", torch.int32), ("b", torch.int16), ("n", torch.int64)):
        bits = tensors[name].view(kind).reshape(-1)
        for bit in range(kind.itemsize * 8):
            flipped = bits.clone()
            flipped[-1] ^= torch.tensor(1, dtype=kind) << bit
            sums.add(int(checksum({**tensors, name: flipped.view(tensors[name].dtype)})))
    assert len(sums) == 1 + 32 + 16 + 64
    assert odd([3, 3, 4, 3]) == [2]
    assert odd([3, 4]) == []


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_twenty_one_injections(tmp_path: Path) -> None:
    cases = [(kind, seed) for kind in KINDS for seed in (10, 11, 12)]
    # A rollback leaves out two dozen batches: of 250 that costs more than 2 % of the loss.
    gangs.afresh(f"test_injections.inject(folder, {cases}, steps=500)", tmp_path, timeout=1400)
    for kind, seed in cases:
        check(tmp_path, f"{kind}-{seed}")


def inject_sharded(folder: Path, cases: list[tuple[str, int]]) -> None:
    importlib.import_module("torch.distributed.fsdp")  # before processes are forked
    inject(folder, cases, steps=500, parallel=FSDPConfig())


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_harm_to_one_rank_of_a_sharded_training_is_recovered_from_by_all(tmp_path: Path) -> None:
    """Each kind once; what one rank's weights are, all gather."""
    cases = [(kind, seed) for seed, kind in enumerate(KINDS, start=1)]
    gangs.afresh(f"test_injections.inject_sharded(folder, {cases})", tmp_path, timeout=1400)
    for kind, seed in cases:
        check(tmp_path, f"{kind}-{seed}")
