"""A worker's sign of life: what it says, what it hears, and when it ends itself."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster import pulse
from cluster.mailbox import GangStopped, Reply, Report
from cluster.pulse import Gone, Pulse

FINE = Reply(wanted=True, stopping=False, stack=False)


class End:
    """A mailbox in this process."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.reply: Reply | Exception = FINE
        self.ended = threading.Event()

    def __call__(self, report: Report) -> Reply:
        self.reports.append(report)
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    def kill(self, status: int) -> None:
        self.ended.set()


@pytest.fixture
def end() -> End:
    return End()


@pytest.fixture
def beating(end: End) -> Iterator[Pulse]:
    made = Pulse(end, rank=1, attempt=2, end=end.kill, interval=0.01).start()
    yield made
    end.reply = FINE
    made.close()


def until(there: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_it_says_how_far_it_is_and_how_much_of_that_was_its_own_work(end: End, beating: Pulse) -> None:
    for step in range(1, 4):
        beating.beat(8 * step, 0.5)
    beating.phase("look")
    until(lambda: bool(end.reports) and end.reports[-1].phase == "look")
    assert end.reports[-1] == Report(rank=1, attempt=2, done=24, steps=3, busy=1.5, phase="look")


def test_a_step_costs_microseconds(beating: Pulse) -> None:
    start = time.perf_counter()
    for step in range(10_000):
        beating.beat(step)
        beating.stopping()
    assert time.perf_counter() - start < 1.0  # 100 us each would be too much


def test_it_hears_that_it_is_to_stop(end: End, beating: Pulse) -> None:
    assert not beating.stopping()
    end.reply = Reply(wanted=True, stopping=True, stack=False)
    until(beating.stopping)
    end.reply = FINE  # another answer does not take it back: some rank may have seen the first
    time.sleep(0.05)
    assert beating.stopping()


def test_a_machine_that_will_be_taken_away_stops_it(end: End) -> None:
    beating = Pulse(end, rank=0, attempt=0, leaving=lambda: True, interval=0.01).start()
    until(beating.stopping)
    beating.close()


def test_sigterm_stops_it_at_once(end: End) -> None:
    beating = Pulse(end, rank=0, attempt=0, interval=60)
    before = signal.signal(signal.SIGTERM, pulse.on_sigterm)
    try:
        signal.raise_signal(signal.SIGTERM)
        assert beating.stopping()
    finally:
        signal.signal(signal.SIGTERM, before)
        pulse.TOLD.clear()


def test_an_unwanted_one_ends_at_its_next_step_or_after_a_while(
    end: End, beating: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "HURRY", 0.1)
    end.reply = Reply(wanted=False, stopping=True, stack=False)
    until(beating.stopping)
    with pytest.raises(GangStopped):
        beating.beat(8)
    assert end.ended.wait(10)  # here nothing leaves, as nothing would that waits for a lost worker


def test_one_whose_driver_is_gone_ends_at_once(end: End, beating: Pulse) -> None:
    end.reply = Gone("the actor died")
    assert end.ended.wait(10)


def test_one_that_is_not_answered_ends_after_a_while(
    end: End, beating: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    end.reply = TimeoutError("no answer")
    time.sleep(0.1)
    assert not end.ended.is_set()
    monkeypatch.setattr(pulse, "ALONE", 0.05)
    assert end.ended.wait(10)


def test_it_says_where_its_training_stands(end: End) -> None:
    stand, leave = threading.Event(), threading.Event()

    def training() -> None:
        made = Pulse(end, rank=0, attempt=0, interval=0.01).start()
        stand.set()
        leave.wait(10)
        made.close()

    thread = threading.Thread(target=training)
    thread.start()
    stand.wait(10)
    end.reply = Reply(wanted=True, stopping=False, stack=True)
    until(lambda: any("leave.wait(10)" in report.stack for report in end.reports))
    leave.set()
    thread.join()
