"""What a manifest says of how its output came to be: the stage, its inputs, and beside them how it ran."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from cluster.mapping import Executor
from cluster.resources import Resources
from pipelines.runner.plan import PlannedStage

PACKAGES = ("latentmill", "torch", "numpy", "pillow", "ray", "transformers", "open_clip_torch")


def header(
    planned: PlannedStage,
    inputs: Mapping[str, Any],
    *,
    resources: Resources,
    executor: Executor,
    seconds: float,
) -> dict[str, Any]:
    """Fields that every manifest has. What is under `execution` decided nothing but the time it took."""
    identity = planned.identity
    assert identity is not None
    described = {}
    for name, source in planned.sources.items():
        if source is None:
            continue
        field, several, number = name.partition(".")
        artifact = inputs[field][int(number)] if several else inputs[field]
        manifest = getattr(artifact, "manifest", {})
        described[name] = {
            "reference": source.reference,
            "stage": manifest.get("stage"),
            "fingerprint": manifest.get("fingerprint"),
            "digest": identity.inputs[name],
            "url": source.url,
        } | ({"model_version": source.version} if source.version is not None else {})
    return {
        "stage": identity.stage,
        "version": identity.version,
        "fingerprint": identity.fingerprint,
        "meaning": dict(identity.meaning),
        "external": dict(identity.external),
        "inputs": described,
        "execution": {
            "resources": dataclasses.asdict(resources),
            "executor": type(executor).__name__,
            "seconds": round(seconds, 3),
            "versions": versions(),
            "machine": platform.machine(),
        },
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that decide bytes; read from what is installed, without importing any."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
