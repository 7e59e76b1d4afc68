"""The files of infra/ as data, and the schemas that they are held against."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator
from jsonschema.protocols import Validator

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


@functools.cache
def schema(name: str) -> dict[str, Any]:
    """KubeRay 1.7, Kubernetes 1.34 (strict: unknown keys fail) and compose; all Apache-2.0."""
    return json.loads(gzip.decompress((Path(__file__).parent / "schemas" / f"{name}.json.gz").read_bytes()))


@functools.cache
def validator(kind: str) -> Validator:
    """Of an apiVersion and kind, `apps/v1/Deployment`; KeyError for one that infra/ does not use."""
    if kind.startswith("ray.io/"):
        return Draft7Validator(schema({"RayCluster": "raycluster-v1", "RayJob": "rayjob-v1"}[kind[10:]]))
    core = schema("kubernetes-1.34")
    return Draft7Validator({**core["kinds"][kind], "definitions": core["definitions"]})


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def pods(document: Any) -> list[dict[str, Any]]:
    """The specs of all pods that a Kubernetes document makes."""
    if isinstance(document, list):
        return [spec for item in document for spec in pods(item)]
    if not isinstance(document, dict):
        return []
    own = (
        [document["template"]["spec"]] if "containers" in document.get("template", {}).get("spec", {}) else []
    )
    return own + [spec for value in document.values() for spec in pods(value)]


def pinned(package: str) -> str:
    """Version that constraints.txt names."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.lower().startswith(f"{package}=="))
