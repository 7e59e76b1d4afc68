"""A head that answers no more, by a clock of the test's own and without Ray."""

from __future__ import annotations

import socket

import pytest

from cluster.head import RAY_WAITS, Head, HeadLost, reached


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def seconds(local: bool) -> float:
    """That a head is waited for which answered once and then never."""
    clock, there = Clock(), [True]
    head = Head("10.0.0.1:6379", local=local, reached=lambda address: there[0], clock=clock)
    head.check()
    there[0] = False

    def wait() -> None:
        while clock.now < 1000.0:
            head.check()
            clock.now += 0.5

    with pytest.raises(HeadLost) as raised:
        wait()
    assert head.lost
    assert ("10.0.0.1:6379" in str(raised.value)) is not local
    return clock.now - 100.0


def test_time_is_left_for_a_checkpoint_before_ray_ends_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAY_WAITS, raising=False)
    assert seconds(local=True) == 5
    assert seconds(local=False) == 15
    monkeypatch.setenv(RAY_WAITS, "600")  # as where a cluster starts its head again
    assert seconds(local=False) == 555
    assert seconds(local=True) == 5


def test_one_that_comes_back_in_time_is_not_lost() -> None:
    clock, answers = Clock(), iter([True, False, False, True, False, False])
    head = Head("10.0.0.1:6379", local=True, reached=lambda address: next(answers), clock=clock)
    for _ in range(6):
        head.check()
        clock.now += 4.0
    assert not head.lost


def test_a_port_is_asked_by_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert reached(address)
    assert not reached(address)
