"""A run's progress as gauges for Prometheus: a listener of its events, so that no stage knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.metrics import Gauges

GAUGES = {
    "latentmill_shards": "Shards that a stage has finished",
    "latentmill_images": "Images that a stage has finished, or has seen in training",
    "latentmill_images_planned": "Images that a stage has before it in all",
    "latentmill_images_per_second": "Images that a stage finishes a second",
    "latentmill_rejects": "Images that a stage has rejected",
    "latentmill_loss": "Loss of a training",
    "latentmill_running": "1 while a stage runs, 0 when it has ended",
}
TAGS = ("recipe", "stage")
WINDOW = 5.0
"""Seconds over which a rate is taken, at least."""


class Meters:
    """Call it with each event of a run on Ray; `close` it before the connection is."""

    def __init__(self, recipe: str) -> None:
        self._recipe = recipe
        self._gauges = Gauges(GAUGES, TAGS)
        self._since: dict[str, tuple[float, float]] = {}
        """Stage -> time and count from which its rate is taken."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind, stage = event["kind"], str(event.get("stage") or "")
        if not stage:
            return
        if kind == "stage_start":
            self._set(stage, running=1)
        elif kind == "progress":
            self._progress(stage, event)
        elif kind == "metrics":
            loss = event["values"].get("loss")
            if isinstance(loss, (int, float)):
                self._set(stage, loss=loss)
        elif kind == "stage_end":
            self._set(stage, running=0, images_per_second=0)
            self._since.pop(stage, None)

    def close(self) -> None:
        self._gauges.close()

    def _progress(self, stage: str, event: Mapping[str, Any]) -> None:
        done, now = float(event["done"]), float(event["time"])
        self._set(stage, images=done)
        if event.get("total") is not None:
            self._set(stage, images_planned=float(event["total"]))
        if "shards" in event:
            self._set(stage, shards=event["shards"], rejects=sum(event.get("rejects", {}).values()))
        then, before = self._since.setdefault(stage, (now, done))
        if done < before:  # a training that lost a worker goes on from its last checkpoint
            self._since[stage] = (now, done)
        elif now - then >= WINDOW:
            self._since[stage] = (now, done)
            self._set(stage, images_per_second=(done - before) / (now - then))

    def _set(self, stage: str, **values: float) -> None:
        for name, value in values.items():
            self._gauges.set(f"latentmill_{name}", float(value), recipe=self._recipe, stage=stage)
