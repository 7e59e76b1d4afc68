"""A worker's own work is what it waits for nobody in."""

from __future__ import annotations

import time

import pytest
import torch

from pipelines.training.effort import Effort


def test_data_and_forward_count_until_they_are_asked_for() -> None:
    effort = Effort(torch.device("cpu"))
    with effort.data():
        time.sleep(0.05)
    with effort.forward():
        time.sleep(0.1)
    time.sleep(0.1)  # the others' exchange
    assert 0.15 <= effort.taken() < 0.25
    assert effort.taken() == 0.0


class Event:
    """A mark on a GPU's stream that the test lets pass."""

    clock, passed = 0.0, 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0

    def record(self) -> None:
        self.at = Event.clock
        Event.clock += 40.0

    def query(self) -> bool:
        return self.at <= Event.passed

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_a_gpus_work_is_known_later_and_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    effort = Effort(torch.device("cuda"))
    for _ in range(3):
        with effort.forward():
            pass
    assert effort.taken() == 0.0
    Event.passed = 120.0  # two of the three have ended
    assert effort.taken() == pytest.approx(0.08)
    Event.passed = 1e9
    assert effort.taken() == pytest.approx(0.04)
