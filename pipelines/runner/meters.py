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
    "latentmill_running": "1 while a stage runs, 0 when it has ended",
    "latentmill_loss": "Loss of a training",
    "latentmill_loss_by_time": "The same of the samples whose time is in a part of 0 to 1",
    "latentmill_validation_loss": "Loss of a training's averaged weights on held-out samples",
    "latentmill_kid": "KID x 1000 of what a training's averaged weights draw",
    "latentmill_grad_norm": "Norm of a training's gradient",
    "latentmill_learning_rate": "Learning rate of a training",
    "latentmill_tflops": "TFLOP/s of one worker that a training's model needs",
    "latentmill_share_of_peak": "The same over what the GPU computes at most",
    "latentmill_gpu_utilisation": "Share of the time in which a training's GPUs did anything at all",
    "latentmill_memory_gib": "GiB that the worker takes that takes the most",
    "latentmill_goodput": "Share of a training's time that led to where it is",
    "latentmill_badput": "Share of a training's time that went elsewhere, by where it went",
    "latentmill_skipped_steps": "Steps of a training that changed nothing, as their gradient was not finite",
    "latentmill_workers": "Workers of a training",
    "latentmill_restarts": "How often a training's workers were started again",
    "latentmill_checkpoint_age": "Seconds since a training's newest checkpoint: what a loss would cost",
    "latentmill_checkpoint_seconds": "Seconds that the newest checkpoint took until it was safe",
    "latentmill_straggler": "Step time of a worker over that of the others, once it is named for it",
}
NAMES = {"lr": "learning_rate"}
"""Of what a training tells under another name."""
PARTS = {"badput_": "badput", "loss_by_time/": "loss_by_time"}
"""Starts of the names of several figures of one kind: the rest is the part."""
RATES = ("images_per_second", "tflops", "share_of_peak", "gpu_utilisation", "workers", "checkpoint_age")
"""What a stage that has ended has none of."""
TAGS = ("recipe", "stage", "part")
WINDOW = 5.0
"""Seconds over which a rate is taken, at least."""


class Meters:
    """Call it with each event of a run on Ray; `close` it before the connection is."""

    def __init__(self, recipe: str) -> None:
        self._recipe = recipe
        self._gauges = Gauges(GAUGES, TAGS)
        self._since: dict[str, tuple[float, float]] = {}
        """Stage -> time and count from which its rate is taken."""
        self._told: dict[str, set[str]] = {}
        """Stage -> what it has told as a training."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind, stage = event["kind"], str(event.get("stage") or "")
        if not stage:
            return
        if kind == "stage_start":
            self._set(stage, running=1)
        elif kind == "progress":
            self._progress(stage, event)
        elif kind == "metrics":
            self._training(stage, event["values"])
        elif kind == "straggler":
            self._set(stage, straggler=event["ratio"])
        elif kind == "stage_end":
            known = {"images_per_second", *self._told.pop(stage, set())}
            self._set(stage, running=0)
            for name in known.intersection(RATES):
                self._one(stage, name, 0)
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

    def _training(self, stage: str, values: Mapping[str, Any]) -> None:
        for told, value in values.items():
            if not isinstance(value, (int, float)):
                continue
            start = next((start for start in PARTS if told.startswith(start)), "")
            name = PARTS.get(start, NAMES.get(told, told))
            # Its rate is taken from its progress, as that of any stage.
            if f"latentmill_{name}" in GAUGES and name != "images_per_second":
                self._one(stage, name, value, part=told.removeprefix(start) if start else "")
                self._told.setdefault(stage, set()).add(name)

    def _set(self, stage: str, **values: float) -> None:
        for name, value in values.items():
            self._one(stage, name, value)

    def _one(self, stage: str, name: str, value: float, *, part: str = "") -> None:
        self._gauges.set(f"latentmill_{name}", float(value), recipe=self._recipe, stage=stage, part=part)
