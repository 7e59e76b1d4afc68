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
        self.values[tags["stage"], name.removeprefix("latentmill_")] = value


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


def test_the_loss_of_each_training_by_itself(told):
    listener, values = told
    for stage, loss in (("vae", 0.5), ("base", 0.25), ("vae", 0.125)):
        listener(
            {"kind": "metrics", "stage": stage, "step": 8, "values": {"loss": loss, "lr": 1.0}, "time": 1.0}
        )
    listener({"kind": "metrics", "stage": "report", "step": 8, "values": {"kid": 1.0}, "time": 1.0})
    assert values == {("vae", "loss"): 0.125, ("base", "loss"): 0.25}
