"""What a gang's mailbox counts and says, by a clock of the test's own and without Ray."""

from __future__ import annotations

import pytest

from cluster.mailbox import SAFE, GangFailed, GangPaused, Mailbox, Place, Reply, Report


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


PLACES = [Place(rank=rank, node=f"n{rank}", host=f"h{rank}", pid=10 + rank) for rank in range(2)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mailbox(clock: Clock) -> Mailbox:
    return Mailbox(clock=clock)


def reach(mailbox: Mailbox, attempt: int, done: int, *, rank: int = 0, steps: int = 1) -> Reply:
    return mailbox.beat(Report(rank=rank, attempt=attempt, done=done, steps=steps))


def test_failures_count_in_a_row_and_only_without_progress(mailbox: Mailbox) -> None:
    """Twenty failures that each gained a step, then three that gained none."""
    for attempt in range(20):
        mailbox.begin(attempt, PLACES)
        assert reach(mailbox, attempt, attempt + 1).wanted
        mailbox.failed(attempt, "worker 1 was lost")
        mailbox.failed(attempt, "worker 0 raised because of it")  # the same failure, seen twice
        assert mailbox.vain == 0
    for more in range(3):
        assert mailbox.final() is None
        mailbox.begin(20 + more, PLACES)
        reach(mailbox, 20 + more, 20)  # as far as before, and no further
        mailbox.failed(20 + more, "worker 1 was lost")
    assert isinstance(mailbox.final(), GangFailed)
    assert "3 times in a row" in str(mailbox.final())
    assert "worker 1 was lost" in str(mailbox.final())
    assert not reach(mailbox, 22, 20, steps=2).wanted


def test_one_that_fails_at_once_ends_at_the_third_time(mailbox: Mailbox) -> None:
    for attempt in range(3):
        assert mailbox.final() is None
        mailbox.begin(attempt, PLACES)
        mailbox.failed(attempt, "out of memory")
    assert isinstance(mailbox.final(), GangFailed)


def test_progress_forgives(mailbox: Mailbox) -> None:
    for attempt, done in enumerate([5, 5, 5, 6, 6, 6, 7]):
        mailbox.begin(attempt, PLACES)
        reach(mailbox, attempt, done)
        mailbox.failed(attempt, "lost")
    assert mailbox.final() is None
    assert mailbox.vain == 0


def test_a_worker_of_an_earlier_attempt_is_unwanted(mailbox: Mailbox) -> None:
    mailbox.begin(0, PLACES)
    assert reach(mailbox, 0, 1) == Reply(wanted=True, stopping=False, stack=False)
    mailbox.begin(1, PLACES)
    assert not reach(mailbox, 0, 2).wanted
    assert mailbox.furthest == 1


def test_leaving_a_machine_is_no_failure_and_no_end(mailbox: Mailbox) -> None:
    for attempt in range(5):
        mailbox.begin(attempt, PLACES)
        assert not mailbox.paused(attempt, GangPaused("Stopped at 8 images."))
        mailbox.failed(attempt, "worker 1: GangPaused")
    assert (mailbox.final(), mailbox.vain) == (None, 0)


def test_a_pause_that_the_driver_wants_is_the_end(mailbox: Mailbox) -> None:
    mailbox.begin(0, PLACES)
    assert not reach(mailbox, 0, 1).stopping
    mailbox.pause("the run is to end")
    assert reach(mailbox, 0, 2).stopping
    for _ in range(2):  # of each worker
        assert mailbox.paused(0, GangPaused("Stopped at 8 images."))
    assert [event["kind"] for event in mailbox.take()] == [SAFE]
    assert isinstance(mailbox.final(), GangPaused)
    assert mailbox.fate() == (mailbox.final(), "the run is to end")


def test_growing_pauses_only_the_attempt_that_is_too_small(mailbox: Mailbox) -> None:
    mailbox.begin(0, PLACES[:1])
    mailbox.resize()
    assert reach(mailbox, 0, 1).stopping
    assert not mailbox.paused(0, GangPaused("Stopped."))
    mailbox.begin(1, PLACES)
    assert not reach(mailbox, 1, 2).stopping


def test_an_interruption_lasts_from_the_last_step_to_the_next(mailbox: Mailbox, clock: Clock) -> None:
    mailbox.begin(0, PLACES)
    reach(mailbox, 0, 1)
    clock.now += 10
    reach(mailbox, 0, 2, steps=2)
    clock.now += 1
    reach(mailbox, 0, 2, steps=2)  # alive, and no further
    mailbox.failed(0, "worker 1 was lost")
    reach(mailbox, 0, 2, steps=2)  # the other one, not ended yet
    clock.now += 4
    mailbox.begin(1, PLACES[:1])
    clock.now += 2
    reach(mailbox, 1, 1, steps=0)
    assert [event for event in mailbox.take() if event["kind"] == "restart"] == []
    clock.now += 1
    reach(mailbox, 1, 1)
    events = mailbox.take()
    assert events[0] == {
        "kind": "restart", "attempt": 1, "world": 1, "cause": "worker 1 was lost", "seconds": 8.0,
    }  # fmt: skip
    assert events[1]["text"] == "Goes on with 1 worker, 8 s after: worker 1 was lost"


def test_stacks_are_asked_of_all_and_stay_until_the_next_step(mailbox: Mailbox, clock: Clock) -> None:
    mailbox.begin(0, PLACES)
    reach(mailbox, 0, 1)
    mailbox.ask()
    assert reach(mailbox, 0, 1).stack
    assert not mailbox.beat(Report(rank=0, attempt=0, done=1, steps=1, stack="here")).stack
    assert reach(mailbox, 0, 1, rank=1).stack
    assert not reach(mailbox, 0, 1).stack
    clock.now += 7
    standing = mailbox.look()
    assert standing.reports[0].stack == "here"
    assert standing.ages == {0: 7.0, 1: 7.0}
    assert not standing.ended
