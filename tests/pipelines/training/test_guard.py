from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.gang import Member
from cluster.storage import Storage
from diffusion.config import OptimizationConfig
from diffusion.training import Progress, TrainingState, fit
from pipelines.training.config import GuardConfig
from pipelines.training.guard import LOOK, Guard, Harm
from pipelines.training.job import Training
from pipelines.training.journal import Entry, Journal
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
