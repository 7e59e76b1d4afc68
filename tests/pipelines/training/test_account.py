from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from cluster.gang import Member
from cluster.storage import Storage
from pipelines.training import account
from pipelines.training.account import CATEGORIES, Account, Tally, tallies, told, totals

TARGET = 1000


class Clock:
    """Whole seconds, so that sums are exact. The wall clock begins anywhere."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def pass_(self, seconds: int) -> None:
        self.now += seconds


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "checkpoints")


def member(rank: int = 0) -> Member:
    return Member(rank=rank, world=2, event=lambda event: None, threads=1)


def begin(
    storage: Storage, clock: Clock, *, lease: int = 1, rank: int = 0, target: int = TARGET, boot: int = 0
) -> Account:
    """An attempt's account; its monotonic clock has nothing to do with another attempt's."""
    return Account(
        storage,
        member(rank),
        lease=lease,
        target=target,
        monotonic=lambda: float(clock.now - boot),
        clock=lambda: float(clock.now),
    )


def steps(kept: Account, clock: Clock, places: range, *, seconds: int = 2) -> None:
    for place in places:
        clock.pass_(seconds)
        kept.stepped(place)


def save(kept: Account, clock: Clock, place: int, *, stall: int = 1) -> None:
    with kept.spent("checkpoint"):
        kept.saving(place)
        clock.pass_(stall)
    kept.saved(place)


def settled(kept: Account) -> None:
    """Waits for the writing that a step has begun."""
    if kept._thread is not None:
        kept._thread.join()


def found(**seconds: int) -> dict[str, float]:
    return {**dict.fromkeys(CATEGORIES, 0.0), **seconds}


def test_an_unbroken_training(storage: Storage) -> None:
    clock = Clock()
    kept = begin(storage, clock)
    clock.pass_(5)  # imports
    with kept.spent("restore"):
        clock.pass_(3)
        kept.restored(0)
    with kept.spent("data"):
        clock.pass_(7)
    steps(kept, clock, range(100, 1000, 100))  # the first of them still belongs to the start
    with kept.spent("look"):
        clock.pass_(11)
        with kept.spent("checkpoint"):  # the inner of two
            clock.pass_(13)
    save(kept, clock, 900, stall=4)
    steps(kept, clock, range(1000, 1001))
    clock.pass_(17)  # the snapshot

    summary = kept.summary()

    assert summary["seconds"] == found(
        start=5 + 2, restore=3, data=7, look=11, checkpoint=13 + 4 + 17, step=8 * 2 + 2
    )
    assert summary["wall"] == clock.now - 1_000_000 == sum(summary["seconds"].values())
    assert summary["goodput"] == round(18 / 80, 4)
    assert summary["attempts"] == 1
    assert sum(kept.values().values()) == pytest.approx(1)
    assert kept.values()["goodput"] == 18 / 80
    assert kept.values()["badput_data"] == 7 / 80


def test_steps_beyond_the_last_checkpoint_are_lost_and_the_gap_is_down(storage: Storage) -> None:
    clock = Clock()
    first = begin(storage, clock)
    first.restored(0)
    steps(first, clock, range(100, 600, 100))
    save(first, clock, 500)
    steps(first, clock, range(600, 900, 100))  # 6 s that nobody will see again
    first.close()  # it raised something
    clock.pass_(30)

    second = begin(storage, clock, boot=clock.now)
    clock.pass_(4)
    second.restored(500)
    steps(second, clock, range(600, 1001, 100))

    assert second.totals() == found(start=2 + 4 + 2, step=8 + 8, checkpoint=1, lost=6, down=30)
    assert sum(second.totals().values()) == clock.now - 1_000_000
    assert second.summary()["attempts"] == 2


def test_a_kill_loses_what_was_not_written_and_no_more(storage: Storage) -> None:
    clock = Clock()
    first = begin(storage, clock)
    first.restored(0)
    steps(first, clock, range(100, 600, 100), seconds=1)
    save(first, clock, 500)  # written at 6 s
    steps(first, clock, range(510, 600, 10), seconds=1)  # below EVERY: not written
    clock.pass_(20)  # killed above, seen and replaced here
    second = begin(storage, clock)

    second.restored(500)
    assert second.totals() == found(start=1, step=4, checkpoint=1, down=9 + 20)

    # At this cadence, what an attempt has done since its checkpoint is known, and lost.
    steps(second, clock, range(501, 513), seconds=1)  # the first is the start's, the tenth is written
    settled(second)
    third = begin(storage, clock)
    third.restored(500)
    assert third.totals() == found(start=1 + 1, step=4, checkpoint=1, lost=9, down=29 + 2)
    assert sum(third.totals().values()) == clock.now - 1_000_000


def test_a_checkpoint_that_is_whole_shows_steps_that_were_not_written(storage: Storage) -> None:
    """Killed between the checkpoint and the writing about it."""
    clock = Clock()
    first = begin(storage, clock)
    first.restored(0)
    steps(first, clock, range(100, 400, 100))
    save(first, clock, 300)  # 4 s of steps for 300 images, the first 2 being the start's
    clock.pass_(10)

    second = begin(storage, clock)
    second.restored(600)

    assert second.totals() == found(start=2, checkpoint=1, step=4 + 4, down=10 - 4)


def test_an_older_checkpoint_takes_more_back(storage: Storage) -> None:
    """The newest was damaged: the third attempt begins where the first already was."""
    clock = Clock()
    for begun, places in ((0, range(100, 501, 100)), (400, range(500, 801, 100))):
        kept = begin(storage, clock)
        kept.restored(begun)
        for place in places:
            steps(kept, clock, range(place, place + 1))
            save(kept, clock, place)
        kept.close()
    third = begin(storage, clock)
    third.restored(200)

    # The first keeps its second step of five; the second loses all but its first, which was its start.
    assert third.totals() == found(start=2 + 2, step=2, lost=6 + 6, checkpoint=5 + 4)


def test_going_back_in_one_process(storage: Storage) -> None:
    clock = Clock()
    kept = begin(storage, clock)
    kept.restored(0)
    steps(kept, clock, range(100, 300, 100))
    save(kept, clock, 200)
    steps(kept, clock, range(300, 600, 100))
    kept.again()
    clock.pass_(3)
    kept.restored(200)
    steps(kept, clock, range(300, 1001, 100))
    assert kept.totals() == found(start=2 + 3 + 2, step=2 + 14, lost=6, checkpoint=1)
    assert kept.summary()["attempts"] == 2
    kept.close()

    assert totals(tallies(storage)) == kept.totals()  # as others read it
    again = begin(storage, clock, lease=2)  # its driver died before it could finish the folder
    again.restored(1000)
    assert again.totals() == kept.totals()


def test_drivers_follow_each_other_and_other_lengths_do_not_count(storage: Storage) -> None:
    clock = Clock()
    short = begin(storage, clock, target=300)
    short.restored(0)
    steps(short, clock, range(100, 301, 100))
    short.close()
    clock.pass_(86_400)

    start = clock.now
    long = begin(storage, clock, lease=2)
    long.restored(300)
    steps(long, clock, range(400, 601, 100))
    save(long, clock, 600)
    clock.pass_(50)
    other = begin(storage, clock, lease=3)
    other.restored(600)
    steps(other, clock, range(700, 1001, 100))
    other.close()
    end = other.totals()
    assert end == found(start=2 + 2, step=4 + 6, checkpoint=1, down=50)
    assert sum(end.values()) == clock.now - start

    clock.pass_(10**6)  # after the end nobody waits
    last = begin(storage, clock, lease=4)
    last.restored(1000)
    assert last.totals() == end


def test_the_gang_hears_what_a_worker_does_beside_its_steps(storage: Storage) -> None:
    heard: list[str] = []
    told = dataclasses.replace(member(), phase=heard.append)
    kept = Account(storage, told, lease=1, target=TARGET)
    with kept.spent("look"), kept.spent("checkpoint"):
        pass
    with kept.spent("data"):
        pass
    assert heard == ["look", "checkpoint", "look", "", "", ""]


def test_only_rank_0_writes(storage: Storage) -> None:
    clock = Clock()
    kept = begin(storage, clock, rank=1)
    kept.restored(0)
    steps(kept, clock, range(100, 1001, 100), seconds=100)
    save(kept, clock, 1000)
    kept.close()
    assert storage.list() == []


@pytest.mark.parametrize("damage", ["{", "[]", "null", '{"format": 1}', '{"format": 2}', "seconds", "marks"])
def test_a_damaged_tally_is_as_good_as_none(storage: Storage, damage: str) -> None:
    clock = Clock()
    first = begin(storage, clock)
    first.restored(0)
    first.close()
    (name,) = storage.list()
    whole = json.loads(storage.read(name))
    text = json.dumps({**whole, damage: "no"}) if damage in whole else damage
    storage.replace(name, text.encode())

    second = begin(storage, clock)
    second.restored(0)
    second.close()
    assert second.summary()["attempts"] == 1
    assert len(storage.list()) == 2


def test_a_store_that_takes_nothing_stops_no_training(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Storage, name: str, data: bytes) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(type(storage), "replace", full)
    clock = Clock()
    kept = begin(storage, clock)
    kept.restored(0)
    steps(kept, clock, range(100, 1001, 100))
    save(kept, clock, 1000)
    kept.close()
    assert kept.summary()["seconds"]["step"] == 18


def test_a_place_between_two_marks_is_taken_in_proportion() -> None:
    tally = Tally(target=TARGET, lease=1, number=1, started=0.0, begun=100, images_seen=500)
    tally.seconds, tally.marks = {"step": 40.0}, [[100, 0.0], [300, 10.0], [400, 20.0]]
    places = (0, 100, 200, 300, 350, 400, 450, 500, 600)
    assert [tally.kept(n) for n in places] == [0, 0, 5, 10, 15, 20, 30, 40, 40]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_parts_are_the_whole(storage: Storage, seed: int) -> None:
    """Steps, looks, checkpoints, kills and exceptions at random, over several drivers."""
    draw, clock, safe, lease = random.Random(seed), Clock(), [0], 1
    for attempt in range(12):
        kept = begin(storage, clock, lease=lease, boot=draw.randrange(10**6))
        clock.pass_(draw.randrange(5))
        place = draw.choice(safe[-2:])
        safe = [n for n in safe if n <= place]
        kept.restored(place)
        for _ in range(draw.randrange(20)):
            place += 1
            steps(kept, clock, range(place, place + 1), seconds=draw.randrange(9))
            settled(kept)
            if draw.random() < 0.3:
                save(kept, clock, place, stall=draw.randrange(3))
                safe.append(place)
            with kept.spent(draw.choice(["look", "data"])):
                clock.pass_(draw.randrange(3))
        assert sum(kept.totals().values()) == pytest.approx(clock.now - 1_000_000, abs=1e-6), attempt
        assert min(kept.totals().values()) >= 0
        lease += draw.randrange(2)
        if draw.random() < 0.3:
            kept.close()
        clock.pass_(draw.randrange(60))


@pytest.mark.parametrize("apart", [20, 5])
def test_goodput_under_faults_is_what_arithmetic_says(
    storage: Storage, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills at random, a checkpoint each 15 s, 10 s until the next attempt steps: what is lost is 15 / 2 + 10
    over the mean time between failures."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    draw, clock, safe, faults, last = random.Random(apart), Clock(), 0, 40, None
    for _ in range(faults):
        last = begin(storage, clock, target=10**9)
        clock.pass_(4)
        last.restored(safe)
        place, dies = safe, round(draw.expovariate(1 / (15 * apart)))
        for seconds in range(3, dies, 3):
            place += 1
            steps(last, clock, range(place, place + 1), seconds=3)
            settled(last)
            if seconds % 15 == 0:
                save(last, clock, place, stall=0)
                safe = place
        clock.pass_(6)
    assert last is not None
    found, wall = last.totals(), clock.now - 1_000_000
    assert sum(found.values()) == pytest.approx(wall)
    assert found["step"] / wall == pytest.approx(1 - (15 / 2 + 10) / (wall / faults), abs=0.03)


def test_it_is_said_in_a_line() -> None:
    seconds = {**found(step=940, lost=30, down=20, data=4), "start": 6.0}
    summary: dict[str, Any] = {"goodput": 0.94, "wall": 1000.0, "seconds": seconds, "attempts": 3}
    assert told(summary) == "goodput 94 %: 3 % steps lost, 2 % down, 1 % starting"
    assert told({}) == ""


def test_what_is_kept_of_a_long_training_is_bounded(storage: Storage) -> None:
    clock = Clock()
    kept = begin(storage, clock, target=10**6)
    kept.restored(0)
    for place in range(1, 200):
        steps(kept, clock, range(place, place + 1))
        save(kept, clock, place)
    assert len(kept._tally.marks) == account.MARKS + 1
    assert totals([kept._tally])["step"] == 198 * 2


def test_a_fault_that_hits_a_restart_makes_that_outage_longer() -> None:
    """As the benchmark counts them: the seconds in which nothing is trained belong to some outage each."""
    from tests.benchmarks.faults import Outage, outages

    def attempt(started: float, *, steps: float) -> Tally:
        seconds = {"start": 3.0, "restore": 1.0} | ({"step": steps} if steps else {})
        return Tally(target=9, lease=1, number=1, started=started, seconds=seconds)

    faults = [(100.0, "killed"), (200.0, "told"), (230.0, "killed"), (300.0, "stopped")]
    attempts = [attempt(0.0, steps=96.0), attempt(106.0, steps=90.0), attempt(210.0, steps=0.0)]
    attempts += [attempt(240.0, steps=56.0)]  # and none after the last fault
    assert outages(faults, attempts) == [Outage("killed", 10.0), Outage("told + killed", 44.0)]
