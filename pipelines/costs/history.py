"""How long a stage takes by an earlier run of it on other data: the same settings, in the same store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster.storage import Storage
from pipelines.costs import rates
from pipelines.dataset import MANIFEST
from pipelines.runner.fingerprint import Identity
from pipelines.runner.plan import PlannedStage

_RUNS = 30
"""Earlier outputs that are looked at, so that a plan stays quick."""
_ENOUGH = 200
"""Samples that a run must have made for its rate to say something."""


def seconds(planned: PlannedStage, samples: int) -> float | None:
    """That `samples` take, by the slowest rate of earlier runs; None where there is none to go by.

    A run counts if its settings and its snapshots were those of the planned one, so only its data differ, if
    it asked for the same GPUs, and if it made all of its samples: none was copied or there before.
    """
    if planned.identity is None or planned.folder is None or not samples:
        return None
    found = []
    parent, _, own = planned.folder.url.rpartition("/")
    stages = Storage.at(parent)
    for name in [name for name in stages.folders() if name != own][:_RUNS]:
        try:
            manifest = json.loads(stages.folder(name).read(MANIFEST))
        except (FileNotFoundError, ValueError):
            continue  # unfinished, or being removed
        made = int((manifest.get("counts") or {}).get("committed", 0))
        if made >= _ENOUGH and _alike(manifest, planned, planned.identity):
            taken = manifest["execution"]["seconds"]
            found.append(max(0.0, taken - rates.START) / made * samples + min(taken, rates.START))
    return max(found, default=None)


def _alike(manifest: Mapping[str, Any], planned: PlannedStage, identity: Identity) -> bool:
    marks, execution = planned.stage.inputs(), manifest.get("execution") or {}
    if not execution.get("whole"):
        return False
    settings = {"meaning": identity.meaning, "external": identity.external, "version": identity.version}
    if any(manifest.get(name) != value for name, value in settings.items()):
        return False
    given = manifest.get("inputs") or {}
    snapshots = [name for name in identity.inputs if marks[name.partition(".")[0]].kind != "dataset"]
    if any(given.get(name, {}).get("digest") != identity.inputs[name] for name in snapshots):
        return False
    gpus = planned.stage.resources.gpus
    return gpus is None or (execution.get("resources") or {}).get("gpus") == gpus
