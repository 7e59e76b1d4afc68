from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.gang import Member
from cluster.storage import Storage
from diffusion.config import OptimizationConfig
from diffusion.training import Progress, TrainingState, fit
from pipelines.training import loop
from pipelines.training.config import GuardConfig
from pipelines.training.guard import LOOK, Guard, Harm
from pipelines.training.job import Training
from pipelines.training.journal import Entry, Journal
from pipelines.training.replicas import checksum, odd
from tests.pipelines.training import gangs

BATCH = gangs.BATCH
STEPS = 250
LEARNS = OptimizationConfig(lr=1e-2, warmup=80, cooldown=800)


def training(**changes: Any) -> Training:
    fields: dict[str, Any] = {"images_seen": STEPS * BATCH, "optimization": LEARNS, "checkpoint_every": 160}
    return gangs.training(**{**fields, **changes})


def guard(folder: Path, notes: list[str] | None = None, **changes: Any) -> Guard:
    told = [] if notes is None else notes
    member = Member(rank=0, world=1, event=lambda event: told.append(event["text"]), threads=1)
    return Guard(training(**changes), Storage.at(folder), member)


STATE: Any = None
"""Of the training; nothing asks for it where replicas are not compared."""


def walk(guard: Guard, bad: set[int], *, begin: int = 0, skipped: int = 0, until: int = STEPS) -> Harm | None:
    """Steps by number from 0, of which some are bad, as `fit` would take them."""
    for step in range(begin, until):
        if guard.skipped(step * BATCH):
            continue
        skipped += step in bad
        progress = Progress(
            images_seen=(step + 1) * BATCH,
            batch=BATCH,
            loss=torch.zeros(()),
            grad_norm=torch.zeros(()),
            lr=0.0,
            skipped=torch.tensor(skipped),
        )
        harm = guard.step(progress, STATE)
        if harm is not None:
            return harm
    return None


def checkpoint(folder: Path, *places: int, cooling: bool = False, target: int = STEPS * BATCH) -> None:
    """What a journal looks at of checkpoints; their tensors it does not read."""
    for place in places:
        record = {"images_seen": place, "cooling": cooling, "target": target}
        folder.mkdir(exist_ok=True)
        stem = f"{place:012d}-{int(cooling) + target:06d}"
        (folder / f"{stem}.json").write_text(json.dumps(record))
        (folder / f"{stem}.{'0' * 16}.00000-of-00001.safetensors").write_bytes(b"x")


def left(folder: Path) -> list[int]:
    """Places of the checkpoints of which anything is there."""
    return sorted({int(path.name[:12]) for path in folder.iterdir() if path.name[:12].isdigit()})


def test_single_bad_steps_are_listed_and_do_no_harm(tmp_path: Path) -> None:
    bad = {3, 4, 50, *range(100, 109), STEPS - 1}
    watching = guard(tmp_path)
    assert walk(watching, bad) is None
    listed = [[24, 40], [400, 408], [800, 872], [STEPS * BATCH - 8, STEPS * BATCH]]
    assert watching.facts() == {"guard": {"bad": listed}}
    assert guard(tmp_path).facts() == {}


def test_many_in_a_row_are_harm_soon_and_a_resumed_training_says_so_at_the_same_step(tmp_path: Path) -> None:
    bad = {20, *range(50, 75)}
    harm = walk(guard(tmp_path), bad)
    assert harm is not None
    assert harm.first == 50 * BATCH
    assert harm.last <= (50 + 10 + 2 * LOOK) * BATCH
    for stop in range(1, harm.last // BATCH):
        first = guard(tmp_path)
        assert walk(first, bad, until=stop) is None
        assert first.good(stop * BATCH) is (stop - 1 not in bad)
        state, count = json.loads(json.dumps(first.state())), sum(step < stop for step in bad)
        second = guard(tmp_path)
        second.restored(state, images_seen=stop * BATCH, skipped=count)
        assert walk(second, bad, begin=stop, skipped=count) == harm


def test_between_two_looks_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(len(self)) or tolist(self))
    for name in ("item", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("this waits for the device"))
    assert walk(guard(tmp_path), {3}, until=10 * LOOK) is None
    assert reads == [LOOK] * 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_not_waited_for(tmp_path: Path) -> None:
    device = torch.device("cuda")
    module = torch.nn.Linear(4, 4).to(device)
    state = TrainingState.start(module, LEARNS, spike=50.0)
    x = torch.randn(BATCH, 4, device=device)
    steps = fit(
        state,
        itertools.repeat(None),
        lambda _: module(x).square().mean(1),
        optimization=LEARNS,
        batch=BATCH,
        target_images=STEPS * BATCH,
    )
    watching = guard(tmp_path)
    watching.step(next(steps), state)  # the optimizer makes its state
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert all(watching.step(next(steps), state) is None for _ in range(STEPS - 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watching.facts() == {}


def test_the_last_steps_are_looked_at_too(tmp_path: Path) -> None:
    harm = walk(guard(tmp_path), set(range(STEPS - 10, STEPS)))
    assert harm is not None
    assert (harm.first, harm.last) == ((STEPS - 10) * BATCH, STEPS * BATCH)


def test_again_it_goes_further_back_and_leaves_out_more_until_it_gives_up(tmp_path: Path) -> None:
    """Whatever it does, each step from number 150 on is bad."""
    checkpoint(tmp_path, *range(160, 1200, 160), 1208)
    checkpoint(tmp_path, 1208, cooling=True, target=1208)
    bad, ways = set(range(150, STEPS)), []
    for _ in range(4):
        watching = guard(tmp_path, guard=GuardConfig(patience=5, rollbacks=4))
        harm = walk(watching, bad)
        assert harm is not None
        watching.leave_out(harm)
        entry = Journal(Storage.at(tmp_path)).read()[0][-1]
        ways.append((entry.restart, entry.begin))
        assert entry.end == harm.last
    # 10 x patience = 50 steps before the first bad one, then 100; no checkpoint is older than 160 images.
    assert ways == [(1120, 1200), (800, 800), (320, 400), (160, 160)]
    assert left(tmp_path) == [160, 1208]  # the other training's own, where it cooled down
    with pytest.raises(ValueError, match=r"going back 4 times has not helped: lower optimization\.lr"):
        walk(guard(tmp_path, guard=GuardConfig(patience=5, rollbacks=4)), bad)
    # Far from there it is another matter.
    assert walk(guard(tmp_path, guard=GuardConfig(patience=5, rollbacks=4)), set(range(5, 15))) is not None


def test_nothing_good_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none before: lower optimization\.lr"):
        walk(guard(tmp_path), set(range(STEPS)))


ENTRY = Entry(reason="a", first=400, last=480, begin=400, end=480, restart=320, cooling=False, target=2000)


def test_an_entry_binds_those_who_pass_there(tmp_path: Path) -> None:
    Journal(Storage.at(tmp_path)).add(ENTRY)
    for target, bound in ((2000, True), (9000, True), (1272, True), (1264, False), (800, False)):
        assert guard(tmp_path, images_seen=target).skipped(440) is bound, target
    Journal(Storage.at(tmp_path)).add(
        dataclasses.replace(ENTRY, first=1600, last=1640, begin=1600, end=1640, cooling=True)
    )
    for target, bound in ((2000, True), (9000, False), (2400, False)):
        watching = guard(tmp_path, images_seen=target)
        assert [watching.skipped(n) for n in (1592, 1600, 1632, 1640)] == [False, bound, bound, False]
        assert watching.usable(1608) is not bound
        assert watching.usable(1600)
        assert watching.usable(1640)


@pytest.mark.parametrize("how", ["cut", "flipped", "other"])
def test_a_damaged_entry_is_told_and_bars_nobody(how: str, tmp_path: Path) -> None:
    journal = Journal(Storage.at(tmp_path))
    journal.add(ENTRY)
    journal.add(dataclasses.replace(ENTRY, begin=320))
    file = tmp_path / "journal" / "000001.json"
    data = file.read_bytes()
    file.write_bytes(
        {"cut": data[:-9], "flipped": data.replace(b"480", b"490"), "other": b'{"format": 1}'}[how]
    )
    notes: list[str] = []
    watching = guard(tmp_path, notes)
    assert notes == [
        "Entry 000001.json of the journal is damaged: the batches that it left out are tried again."
    ]
    assert len(watching.entries) == 1
    assert watching.facts()["guard"]["damaged"] == ["000001.json"]
    journal.add(ENTRY)
    assert (tmp_path / "journal" / "000003.json").exists()


def test_a_kill_after_the_entry_is_made_good_by_the_next_reader(tmp_path: Path) -> None:
    journal = Journal(Storage.at(tmp_path))
    checkpoint(tmp_path, 320, 400)
    journal.add(ENTRY)
    assert left(tmp_path) == [320]
    checkpoint(tmp_path, 480)  # of the new way
    assert left(tmp_path) == [320, 480]
    guard(tmp_path)
    assert left(tmp_path) == [320, 480]
    (tmp_path / "journal" / "000001.done").unlink()
    (tmp_path / f"averages-{480:012d}.safetensors").write_bytes(b"x")
    (tmp_path / f"averages-{480:012d}-of-{480:012d}.safetensors").write_bytes(b"x")
    guard(tmp_path)
    assert left(tmp_path) == [320]
    assert [path.name for path in tmp_path.glob("averages*")] == [
        f"averages-{480:012d}-of-{480:012d}.safetensors"
    ]


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


def inject(folder: Path, cases: list[tuple[str, int]], *, steps: int = STEPS) -> None:
    train = training(guard=GuardConfig(spike=50.0), images_seen=steps * BATCH)
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
    code = f"test_guard.inject(folder / 'injected', {FEW}); test_guard.flip(folder / 'flipped', 2, 1)"
    code += "; test_guard.hide(folder / 'hidden')"
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
    gangs.afresh(f"test_guard.flip(folder, {world}, 15)", tmp_path, timeout=1400)
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
    gangs.afresh(f"test_guard.inject(folder, {cases}, steps=500)", tmp_path, timeout=1400)
    for kind, seed in cases:
        check(tmp_path, f"{kind}-{seed}")
