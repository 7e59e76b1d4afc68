"""A run's events as gauges."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.runner import meters


class Kept:
    """What would be reported to Ray."""

    def __init__(self, descriptions: dict[str, str], tags: tuple[str, ...]) -> None:
        self.names, self.tags, self.values = set(descriptions), tags, {}

    def set(self, name: str, value: float, **tags: str) -> None:
        assert name in self.names
        assert tuple(tags) == self.tags
        part = f" {tags['part']}" if tags["part"] else ""
        self.values[tags["stage"], name.removeprefix("latentmill_") + part] = value


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> tuple[meters.Meters, dict[tuple[str, str], float]]:
    monkeypatch.setattr(meters, "Gauges", Kept)
    listener = meters.Meters("tiny")
    kept: Any = listener._gauges
    return listener, kept.values


def test_shards_images_rejects_and_the_rate_between_two_looks(told):
    listener, values = told
    listener({"kind": "plan", "stage": "", "time": 99.0, "stages": []})
    listener({"kind": "stage_start", "stage": "images", "time": 100.0})
    assert values == {("images", "running"): 1}
    progress = {"kind": "progress", "stage": "images", "total": 90, "unit": "samples"}
    for time, done, shards, rejects in (
        (100, 0, 0, {}),
        (102, 20, 1, {"small": 1}),
        (110, 80, 4, {"small": 2, "odd": 1}),
    ):
        listener({**progress, "time": float(time), "done": done, "shards": shards, "rejects": rejects})
    assert values == {
        ("images", "running"): 1,
        ("images", "images"): 80,
        ("images", "images_planned"): 90,
        ("images", "images_per_second"): 8.0,
        ("images", "shards"): 4,
        ("images", "rejects"): 3,
    }
    listener({"kind": "stage_end", "stage": "images", "time": 111.0, "state": "done"})
    assert values["images", "running"] == values["images", "images_per_second"] == 0
    assert values["images", "shards"] == 4


def test_figures_of_each_training_by_itself(told):
    listener, values = told
    for stage, loss in (("vae", 0.5), ("base", 0.25), ("vae", 0.125)):
        said = {"loss": loss, "lr": 1.0, "images_per_second": 7.0, "unheard_of": 1.0, "name": "x"}
        listener({"kind": "metrics", "stage": stage, "step": 8, "values": said, "time": 1.0})
    listener({"kind": "metrics", "stage": "report", "step": 8, "values": {"kid_generated": 1.0}, "time": 1.0})
    assert values == {
        ("vae", "loss"): 0.125,
        ("vae", "learning_rate"): 1.0,
        ("base", "loss"): 0.25,
        ("base", "learning_rate"): 1.0,
    }


def test_figures_of_one_kind_are_told_apart_and_rates_end_with_the_stage(told):
    listener, values = told
    said = {"goodput": 0.9, "badput_data": 0.1, "badput_lost": 0.0, "loss_by_time/0.000-0.125": 0.5}
    said |= {"tflops": 30.0, "workers": 4, "restarts": 1}
    listener({"kind": "metrics", "stage": "base", "step": 8, "values": said, "time": 1.0})
    listener({"kind": "straggler", "stage": "base", "rank": 3, "ratio": 1.7, "time": 1.0})
    shown = {
        ("base", "goodput"): 0.9,
        ("base", "badput data"): 0.1,
        ("base", "badput lost"): 0.0,
        ("base", "loss_by_time 0.000-0.125"): 0.5,
        ("base", "tflops"): 30.0,
        ("base", "workers"): 4,
        ("base", "restarts"): 1,
        ("base", "straggler"): 1.7,
    }
    assert values == shown
    listener({"kind": "stage_end", "stage": "base", "time": 2.0, "state": "done"})
    gone = {("base", name): 0 for name in ("tflops", "workers", "running", "images_per_second")}
    assert values == {**shown, **gone}


def test_what_a_training_tells_has_its_gauge(tmp_path, told, monkeypatch):
    """And a legal name: MLflow and Prometheus refuse others."""
    import re

    from pipelines.training import loop
    from tests.pipelines import tiny

    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    session = tiny.session(tmp_path, tiny.line(tmp_path / "line"))
    tiny.run(tiny.train(images_seen=24, checkpoint_every=8), session)
    said = {k for event in session.events if event["kind"] == "metrics" for k in event["values"]}
    assert all(re.fullmatch(r"[\w\-. :/]{1,250}", name) for name in said)
    listener, values = told
    for event in session.events:
        listener({**event, "stage": "base", "time": 1.0})
    shown = {name.partition(" ")[0] for _, name in values}
    assert shown >= {"loss", "loss_by_time", "validation_loss", "grad_norm", "learning_rate", "tflops"}
    assert shown >= {"memory_gib", "goodput", "badput", "workers", "restarts", "checkpoint_age"}
    assert all(re.fullmatch(r"[a-z_]+", name) for name in shown)
    assert said - {"lr", "images_per_second"} <= {
        told for _, name in values for told in (name, name.replace(" ", "/"), name.replace(" ", "_"))
    }
