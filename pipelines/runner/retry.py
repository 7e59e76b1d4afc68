"""Rejected samples made once more: a new dataset names the one whose rejects it retries.

A retry is a dataset of its own, whose `retry` is the fingerprint of the one before; what that has is copied.
A recipe's run folder remembers which were retried, so that the same recipe, run or named later, goes on with
what the retry made. `retry: FINGERPRINT` in the recipe itself says the same in any store.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from cluster.storage import Storage
from pipelines.runner.fingerprint import AnyStage, Identity
from pipelines.stage import DROPPED, Inputs, ShardStage

if TYPE_CHECKING:
    from pipelines.runner.plan import Plan

RETRIED = "retried.json"
"""In a run's folder: fingerprints of the datasets that were retried, in that order."""


def retried(store: Storage, recipe: str) -> list[str]:
    """Fingerprints in whose place the recipe uses what retries them."""
    try:
        found = json.loads(store.folder("runs").folder(recipe).read(RETRIED))
    except (FileNotFoundError, ValueError):
        return []
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def remember(store: Storage, recipe: str, fingerprints: Iterable[str]) -> None:
    """Adds to them."""
    known = retried(store, recipe)
    known += [one for one in fingerprints if one not in known]
    store.folder("runs").folder(recipe).replace(RETRIED, json.dumps(known, indent=1).encode())


def latest(
    stage: AnyStage,
    inputs: Inputs,
    retried: Collection[str],
    prepared: Callable[[AnyStage], AnyStage] = lambda stage: stage,
) -> tuple[AnyStage, Identity]:
    """The prepared stage as it stands after its retries: it names the last dataset that was retried."""
    stage = prepared(stage)
    identity, seen = Identity.of(stage, inputs), set[str]()
    while (
        isinstance(stage, ShardStage) and identity.fingerprint in retried and identity.fingerprint not in seen
    ):
        seen.add(identity.fingerprint)
        stage = prepared(dataclasses.replace(stage, retry=identity.fingerprint))
        identity = Identity.of(stage, inputs)
    return stage, identity


def rejects_of(stage: ShardStage, folder: Storage) -> dict[str, int]:
    """Reason -> samples that the stage itself rejected: not those that an input had, nor what was dropped.

    Of a folder that is not finished, what its committed shards say.
    """
    from pipelines.dataset import MANIFEST, read_manifest
    from pipelines.shards import ShardError, read_index

    if folder.exists(MANIFEST):
        names = [shard["name"] for shard in read_manifest(folder)["shards"] if shard["rejected"]]
    else:
        names = [n.removesuffix(".parquet") for n in folder.list() if n.endswith(".parquet") and "/" not in n]
    found: dict[str, int] = {}
    for name in names:
        try:
            index = read_index(folder, name)
        except ShardError:
            continue  # damaged: the run will make it again
        for reason, work in zip(index.reasons, index.works, strict=True):
            # of what an input had rejected there is no work key
            if reason and reason != DROPPED and (work or not stage.primary):
                found[reason] = found.get(reason, 0) + 1
    return dict(sorted(found.items()))


def retriable(plan: Plan) -> dict[str, dict[str, int]]:
    """Stages that have rejected samples of their own, finished or stopped by them -> how many, by reason."""
    found = {}
    for planned in plan.stages:
        if isinstance(planned.stage, ShardStage) and planned.folder is not None:
            reasons = rejects_of(planned.stage, planned.folder)
            if reasons:
                found[planned.name] = reasons
    return found
