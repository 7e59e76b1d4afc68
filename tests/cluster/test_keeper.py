"""What the driver does about a gang that stands still, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from cluster import keeper
from cluster.keeper import Keeper
from cluster.mailbox import GangStopped, Place, Report, Standing
from cluster.watch import Limits, Watch
from tests.cluster.test_watch import IN_A_COLLECTIVE, IN_ITS_DATA

PLACES = [Place(rank=rank, node="n", host=f"h{rank}", pid=70 + rank) for rank in range(3)]


class Line:
    """To a gang of three whose reports the test makes."""

    def __init__(self) -> None:
        self.stacks: dict[int, str] = {}
        self.ages = dict.fromkeys(range(3), 0.0)
        self.events: list[dict[str, Any]] = []
        self.paused: list[str] = []
        self.asked = 0
        self.ended: list[int] = []
        self.given_up: list[BaseException] = []

    def look(self) -> Standing:
        reports = {
            rank: Report(rank=rank, attempt=0, steps=5, stack=self.stacks.get(rank, "")) for rank in range(3)
        }
        events, self.events = self.events, []
        return Standing(attempt=0, places=PLACES, reports=reports, ages=self.ages, ended=False, events=events)

    def pause(self, why: str) -> None:
        self.paused.append(why)

    def ask(self) -> None:
        self.asked += 1

    def give_up(self, error: BaseException) -> None:
        self.given_up.append(error)

    def end(self, place: Place) -> None:
        self.ended.append(place.rank)


class Gang:
    def __init__(self) -> None:
        self.now, self.line, self.told = 0.0, Line(), list[dict[str, Any]]()
        watch = Watch(limits=Limits(silent=60, floor=600), clock=lambda: self.now)
        self.cancelled, self.paused = threading.Event(), threading.Event()
        self.keeper = Keeper(
            line=self.line,
            name="train",
            on_event=self.told.append,
            cancelled=self.cancelled,
            paused=self.paused,
            watch=watch,
        )
        self.keeper.look()

    def notes(self) -> Sequence[str]:
        return [event["text"] for event in self.told if event["kind"] == "note"]


@pytest.fixture
def gang() -> Gang:
    return Gang()


def test_a_worker_that_does_not_answer_is_named_and_ended(gang: Gang) -> None:
    gang.now = 61
    gang.line.ages[1] = 61.0
    gang.keeper.look()
    assert gang.line.ended == [1]
    assert gang.notes() == [
        "Worker 1 on h1 (process 71) does not answer; nothing was done for 61 s. It is ended, and the "
        "training starts again from its last checkpoint."
    ]
    gang.keeper.look()
    assert gang.line.ended == [1]


def test_of_those_that_answer_the_one_that_does_not_wait_for_others_is_ended(gang: Gang) -> None:
    gang.now = 601
    gang.keeper.look()
    assert (gang.line.asked, gang.line.ended) == (1, [])
    gang.keeper.look()  # nobody has said it yet
    assert gang.line.ended == []
    gang.line.stacks = {0: IN_A_COLLECTIVE, 1: IN_A_COLLECTIVE, 2: IN_ITS_DATA}
    gang.keeper.look()
    assert gang.line.ended == [2]
    assert "Worker 2 stands in get (queue.py:171) < prefetched (prefetch.py:41)" in gang.notes()
    assert {
        event["rank"]: event["text"] for event in gang.told if event["kind"] == "stack"
    } == gang.line.stacks


def test_if_none_can_be_told_the_first_is_ended(gang: Gang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "STACKS", 0.0)
    gang.now = 601
    gang.keeper.look()
    gang.keeper.look()
    assert gang.line.ended == [0]
    assert "as all the others" in gang.notes()[-1]


def test_events_come_in_their_order(gang: Gang) -> None:
    gang.line.events = [{"kind": "progress", "done": n} for n in range(3)]
    gang.keeper.look()
    assert [event["done"] for event in gang.told] == [0, 1, 2]


def test_a_pause_is_told_once(gang: Gang) -> None:
    gang.paused.set()
    gang.keeper.look()
    gang.keeper.look()
    assert len(gang.line.paused) == 1


def test_what_a_listener_raises_ends_the_gang(gang: Gang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "POLL", 0.0)
    gang.cancelled.set()
    gang.keeper.run()
    assert isinstance(gang.keeper.error, GangStopped)
    assert [str(error) for error in gang.line.given_up] == ["train was interrupted."]
