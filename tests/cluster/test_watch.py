"""When a gang is taken for hung, who is named, and who is called slow, by a clock of the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cluster.mailbox import Place, Report, Standing
from cluster.watch import Hung, Limits, Watch, culprits, shown

WORLD = 4
PLACES = [Place(rank=rank, node="n", host=f"h{rank}", pid=rank) for rank in range(WORLD)]
LIMITS = Limits(silent=60, floor=600, times=20, slow=3600, window=50, again=600)
IN_A_COLLECTIVE = """  File "/x/pipelines/training/trainer.py", line 90, in _attempt
    for progress in fit(
  File "/x/torch/distributed/distributed_c10d.py", line 2800, in all_reduce
    work.wait()
"""
IN_ITS_DATA = """  File "/x/pipelines/training/prefetch.py", line 41, in prefetched
    made = queue.get()
  File "/usr/lib/python3.11/queue.py", line 171, in get
    self.not_empty.wait()
"""


class World:
    """A gang as its driver sees it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.watch = Watch(limits=LIMITS, clock=lambda: self.now)
        self.attempt, self.ended = 0, False
        self.steps = [0] * WORLD
        self.busy = [0.0] * WORLD
        self.heard = [self.now] * WORLD
        self.phase = [""] * WORLD

    def look(self) -> Any:
        reports = {
            rank: Report(
                rank=rank,
                attempt=self.attempt,
                steps=self.steps[rank],
                busy=self.busy[rank],
                phase=self.phase[rank],
            )
            for rank in range(WORLD)
        }
        ages = {rank: self.now - self.heard[rank] for rank in range(WORLD)}
        return self.watch.look(
            Standing(
                attempt=self.attempt, places=PLACES, reports=reports, ages=ages, ended=self.ended, events=()
            )
        )

    def run(
        self,
        seconds: float,
        *,
        pace: float | None = None,
        silent: Sequence[int] = (),
        busy: Callable[[int], float] = lambda rank: 0.0,
    ) -> list[tuple[float, Any]]:
        """Half-second looks; a step every `pace` seconds; (seconds since the start, what was found)."""
        start, found, over = self.now, [], 0.0
        while self.now < start + seconds:
            self.now += 0.5
            if pace is not None:
                over += 0.5
                while over >= pace:
                    over -= pace
                    for rank in range(WORLD):
                        self.steps[rank] += 1
                        self.busy[rank] += busy(rank)
            for rank in set(range(WORLD)) - set(silent):
                self.heard[rank] = self.now
            if (said := self.look()) is not None:
                found.append((self.now - start, said))
        return found


@pytest.fixture
def world() -> World:
    world = World()
    world.look()
    return world


def test_a_steady_gang_is_left_alone(world: World) -> None:
    assert world.run(3600, pace=2.0) == []


def test_a_stopped_process_is_named_after_a_minute(world: World) -> None:
    assert world.run(30, pace=1.0) == []
    assert world.run(300, silent=[2]) == [(60.5, Hung(ranks=(2,), seconds=60.5))]


def test_silence_alone_is_no_hang_while_steps_are_made(world: World) -> None:
    assert world.run(300, pace=1.0, silent=[2]) == []


def test_if_nobody_is_heard_it_is_the_line_and_not_a_worker(world: World) -> None:
    world.run(30, pace=1.0)
    assert world.run(599, silent=range(WORLD)) == []


def test_one_that_is_alone_and_does_not_answer_is_ended_once_that_is_sure() -> None:
    """Ten minutes would be lost, and after a minute without an answer it ends itself anyway."""
    now = 0.0
    watch = Watch(limits=LIMITS, clock=lambda: now)

    def look(age: float) -> Any:
        reports = {0: Report(rank=0, attempt=0, steps=9)}
        return watch.look(
            Standing(attempt=0, places=PLACES[:1], reports=reports, ages={0: age}, ended=False, events=())
        )

    assert look(0.0) is None
    now = 61.0
    assert look(61.0) is None  # the mailbox may have stood still as well, as on a machine that slept
    now = 62.0
    assert look(0.5) is None  # and so it was
    now = 123.0
    assert look(61.5) is None
    now = 152.0
    assert look(90.5) is None
    now = 154.0
    assert look(92.5) == Hung(ranks=(0,), seconds=154.0)


def test_a_gang_that_answers_has_ten_minutes(world: World) -> None:
    world.run(30, pace=1.0)
    assert world.run(1200) == [(600.5, Hung(ranks=(), seconds=600.5))]


def test_or_twenty_of_its_usual_steps(world: World) -> None:
    world.run(1200, pace=60.0)
    assert world.run(3000) == [(1200.5, Hung(ranks=(), seconds=1200.5))]


def test_compiling_takes_its_time(world: World) -> None:
    assert world.run(3600) == []
    assert world.run(1) == [(0.5, Hung(ranks=(), seconds=3600.5))]


def test_validating_takes_its_time_and_what_follows_has_its_own(world: World) -> None:
    world.run(30, pace=1.0)
    world.phase[0] = "look"
    assert world.run(2000) == []
    world.phase[0] = ""
    assert world.run(1200) == [(600.5, Hung(ranks=(), seconds=2600.5))]


def test_validating_for_ever_is_a_hang_too(world: World) -> None:
    world.run(30, pace=1.0)
    world.phase[0] = "look"
    assert world.run(4000) == [(3600.5, Hung(ranks=(), seconds=3600.5))]


def test_but_a_stopped_process_is_named_even_then(world: World) -> None:
    world.phase[0] = "look"
    assert world.run(120, silent=[1]) == [(60.5, Hung(ranks=(1,), seconds=60.5))]


def test_between_two_attempts_nothing_hangs(world: World) -> None:
    world.run(30, pace=1.0)
    world.ended = True
    assert world.run(7200, silent=[1]) == []
    world.attempt, world.ended, world.steps = 1, False, [0] * WORLD
    world.heard = [world.now] * WORLD
    assert world.run(3000) == []


@pytest.mark.parametrize(("ratio", "named"), [(1.45, False), (1.6, True), (3.0, True)])
def test_a_straggler_is_named_once_it_has_been_one_for_two_windows(
    world: World, ratio: float, named: bool
) -> None:
    found = world.run(700, pace=1.0, busy=lambda rank: 0.5 * (ratio if rank == 3 else 1.0))
    assert [(seconds, said.rank) for seconds, said in found] == ([(100.0, 3), (700.0, 3)] if named else [])
    assert [said.ratio for _, said in found] == pytest.approx([ratio] * 2 * named)


def test_a_burst_is_not_a_straggler(world: World) -> None:
    assert world.run(50, pace=1.0, busy=lambda rank: 0.9 if rank == 3 else 0.2) == []
    assert world.run(300, pace=1.0, busy=lambda rank: 0.2) == []


def test_what_does_not_hold_up_is_not_told(world: World) -> None:
    """Thrice the others' work, in steps of which work is a hundredth."""
    assert world.run(700, pace=1.0, busy=lambda rank: 0.03 if rank == 1 else 0.01) == []


def test_who_is_behind_or_does_not_wait_for_others_is_the_culprit() -> None:
    def told(**stacks_and_steps: tuple[int, str]) -> dict[int, Report]:
        return {
            int(name[1:]): Report(rank=int(name[1:]), attempt=0, steps=steps, stack=stack)
            for name, (steps, stack) in stacks_and_steps.items()
        }

    wait, data = IN_A_COLLECTIVE, IN_ITS_DATA
    assert culprits(told(r0=(7, wait), r1=(7, data), r2=(7, wait))) == (1,)
    assert culprits(told(r0=(9, wait), r1=(9, wait), r2=(4, wait))) == (2,)
    assert culprits(told(r0=(7, wait), r1=(7, wait))) == ()
    assert culprits(told(r0=(7, data), r1=(7, data))) == ()
    assert culprits({}) == ()
    assert shown(data) == "get (queue.py:171) < prefetched (prefetch.py:41)"


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_HANG_FLOOR", "300")
    monkeypatch.setenv("LATENTMILL_HANG_WINDOW", "20")
    assert Limits.here() == Limits(floor=300.0, window=20)
