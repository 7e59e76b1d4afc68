"""What a spare process is asked for, imports, and never spoils; that Ray hands it out is in test_gang."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from cluster import spare
from cluster.spare import Spare


def test_it_imports_what_a_worker_will_and_no_mistake_ends_it() -> None:
    names = spare.environment(["wave", "there.is.none", "colorsys"], threads=3)
    assert names["OMP_NUM_THREADS"] == "3"
    few = {**names, spare.MODULES: "wave,there.is.none,colorsys", "PYTHONPATH": "."}
    module, _, name = few[spare.HOOK].rpartition(".")
    text = f"import sys, importlib; importlib.import_module('{module}').{name}()"
    text += "; print('wave' in sys.modules, 'colorsys' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", text], env=few, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "True"]


def test_what_somebody_has_told_ray_to_call_in_each_process_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(spare.HOOK, "their.hook")
    assert spare.environment(["wave"], threads=1) == {}


def test_it_is_asked_for_once_when_training_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, told = [], threading.Event()

    def start() -> None:
        asked.append(threading.current_thread().name)
        told.set()
        raise OSError("Ray has no such call")

    one = Spare(start=start)
    for _ in range(spare.STEPS - 1):
        one.step()
    assert not asked
    for _ in range(5):
        one.step()
    assert told.wait(5.0)
    assert asked == ["spare"]
    monkeypatch.setenv(spare.WANTED, "0")
    two = Spare(start=lambda: pytest.fail("nobody wants one"))
    for _ in range(5):
        two.step()
