from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.scorers import guarded
from pipelines.scorers.guarded import Guarded
from pipelines.scorers.scorer import Unscored
from tests.pipelines.scorers.failing import opened


def gate(seconds: float = 0.3, **settings: Any) -> Guarded:
    return Guarded(opened, settings, seconds=seconds, what="The test's gate")


def items(*todo: str) -> list[dict[str, Any]]:
    return [{"do": do, "n": n, "image": b"x"} for n, do in enumerate(todo)]


def test_what_fails_on_one_image_leaves_that_image_unscored_and_no_other() -> None:
    todo = ["pass", "crash", "pass", "raise", "hang", "exit", "pass"]
    answers = gate()(items(*todo))
    assert len(answers) == len(todo)
    assert [n for n, a in enumerate(answers) if isinstance(a, Unscored)] == [1, 3, 4, 5]
    assert [answers[n] for n in (0, 2, 6)] == [{"verdict": 0.0}, {"verdict": 2.0}, {"verdict": 6.0}]
    assert answers[1] == Unscored("signal 11")
    assert answers[3] == Unscored("ArithmeticError: a number")
    assert answers[4] == Unscored("timed out")


def test_a_child_that_was_killed_from_outside_is_tried_again(tmp_path: Path) -> None:
    one = {"do": "once", "n": 5, "file": str(tmp_path / "died")}
    assert gate()([one]) == [{"verdict": 5.0}]


def test_one_process_takes_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    assert gate()(items(*["pass"] * 500)) == [{"verdict": float(n)} for n in range(500)]
    assert time.monotonic() - start < 20
    # Small processes give the same.
    monkeypatch.setattr(guarded, "_BATCH", 2)
    assert gate()(items(*["pass"] * 5)) == [{"verdict": float(n)} for n in range(5)]


def test_what_cannot_be_opened_is_one_line() -> None:
    with pytest.raises(ValueError, match="test's gate cannot be opened: RuntimeError: no weights") as error:
        gate(broken="no weights\nanywhere")(items("pass"))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^the settings are wrong$"):
        gate()(items("pass", "fault"))


def test_a_gate_that_dies_over_and_over_ends_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "HOPELESS", 2)
    with pytest.raises(ValueError, match=r"died over 2 images in a row \(signal 11\)"):
        gate()(items("pass", "crash", "crash", "pass"))
