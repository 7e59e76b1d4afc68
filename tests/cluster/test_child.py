"""A function that crashes, hangs, eats memory or lies ends in `ChildDied`, and this process goes on."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.child import ChildDied, run_in_child


def double(argument: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": argument["bytes"] * 2, "nested": [{"more": b"\x00\xff", "number": 1.5, "none": None}]}


def crash(argument: Any) -> None:
    ctypes.string_at(0)


def sleep(argument: Any) -> None:
    time.sleep(60)


def grow(argument: int) -> int:
    return len(bytearray(argument))


def refuse(argument: Any) -> None:
    raise ValueError("not a picture\nat all")


def some_then_crash(argument: list[int]) -> Iterator[int]:
    for number in argument:
        if number < 0:
            ctypes.string_at(0)
        yield number * number


def environment(argument: str) -> str | None:
    return os.environ.get(argument)


def chatter(argument: Any) -> str:
    print("to stdout " * 10_000)
    return "answer"


def test_bytes_and_json_come_back():
    result = run_in_child(double, {"bytes": b"ab" * 100_000})
    assert result == {
        "bytes": b"ab" * 200_000,
        "nested": [{"more": b"\x00\xff", "number": 1.5, "none": None}],
    }


def test_a_crash_in_native_code_is_a_reason():
    with pytest.raises(ChildDied) as died:
        run_in_child(crash, None)
    assert died.value.reason == "signal 11"


def test_time_is_limited():
    start = time.monotonic()
    with pytest.raises(ChildDied) as died:
        run_in_child(sleep, None, seconds=1.0)
    assert died.value.reason == "time"
    assert time.monotonic() - start < 10


def test_memory_is_limited():
    assert run_in_child(grow, 50 * 2**20, memory=200 * 2**20) == 50 * 2**20
    with pytest.raises(ChildDied) as died:
        run_in_child(grow, 2**30, memory=200 * 2**20)
    assert died.value.reason == "memory"


def test_an_exception_is_one_line():
    with pytest.raises(ChildDied) as died:
        run_in_child(refuse, None)
    assert died.value.reason == "ValueError: not a picture"


def test_what_a_generator_made_before_it_died_is_kept():
    assert run_in_child(some_then_crash, [1, 2, 3]) == [1, 4, 9]
    with pytest.raises(ChildDied) as died:
        run_in_child(some_then_crash, [1, 2, -1, 3])
    assert died.value.results == [1, 4]
    assert died.value.reason == "signal 11"


def test_credentials_stay_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    assert run_in_child(environment, "AWS_SECRET_ACCESS_KEY") is None


def test_prints_do_not_disturb_the_answer():
    assert run_in_child(chatter, None) == "answer"
