"""A process that is told to end: its training stops at a checkpoint and goes on to the same bits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.gang import GangPaused
from cluster.mapping import InlineExecutor
from cluster.resources import Resources
from pipelines.commands.ending import Terminated, politely
from tests.pipelines import tiny

pytest.importorskip("torch")


class Told(tiny.TinySession):
    """A session whose process is told to end once its training has begun."""

    executor: InlineExecutor
    signals: list[int]

    def event(self, event: dict[str, Any]) -> None:
        super().event(event)
        if event["kind"] == "metrics" and "loss" in event["values"] and self.signals:
            os.kill(os.getpid(), self.signals.pop())

    def gang(self, worker: Any, config: dict[str, Any]) -> dict[str, Any]:
        resources = Resources(cpus=1, workers=1)
        return self.executor.gang(worker, config, resources=resources, name="train", on_event=self.event)


def session(folder: Path, line: dict[str, Any], signals: list[int]) -> Told:
    made = tiny.session(folder, line)
    made.__class__ = Told
    assert isinstance(made, Told)
    made.executor, made.signals = InlineExecutor(), signals
    return made


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.line(tmp_path_factory.mktemp("line"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_training_that_is_told_to_end_goes_on_to_the_same_bits(
    line: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    from pipelines.training import loop

    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)  # a report at every step
    unbroken = tiny.run(tiny.train(), tiny.session(tmp_path / "unbroken", line))
    told = session(tmp_path / "told", line, [number])
    with pytest.raises(GangPaused, match="images, which are safe"), politely(told.executor):
        tiny.run(tiny.train(), told)
    seen = int(next(e["step"] for e in told.events if e["kind"] == "metrics"))
    assert seen < 96
    written = sorted(told.checkpoints.list())
    assert any(f"{seen:012d}" in name or f"{seen + 8:012d}" in name for name in written), written
    again = session(tmp_path / "told", line, [])
    resumed = tiny.run(tiny.train(), again)
    assert any("Continues from" in e.get("text", "") for e in again.events)
    assert resumed.read("denoiser.safetensors") == unbroken.read("denoiser.safetensors")


@pytest.fixture
def training() -> InlineExecutor:
    executor = InlineExecutor()
    executor.training = True
    return executor


def waits(*signals: int, pause: float = 0.05) -> None:
    """Is interrupted by one of these."""
    for number in signals:
        os.kill(os.getpid(), number)
        time.sleep(pause)
    time.sleep(10)
    pytest.fail("nothing interrupted it")


def test_a_second_signal_does_not_wait(training: InlineExecutor) -> None:
    with pytest.raises(Terminated), politely(training):
        waits(signal.SIGTERM, signal.SIGTERM)
    assert training.paused.is_set()


def test_nor_does_the_end_of_the_grace(training: InlineExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_GRACE", "0.2")
    with pytest.raises(KeyboardInterrupt) as raised, politely(training):
        waits(signal.SIGINT)
    assert not isinstance(raised.value, Terminated)


def test_what_trains_nothing_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as raised, politely(InlineExecutor()):
        waits(signal.SIGTERM)
    assert raised.value.status == 75
    assert signal.getsignal(signal.SIGTERM) == before
