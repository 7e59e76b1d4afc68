"""Kubernetes manifests: strict schemas, and the few things that a schema cannot know."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.infra.documents import INFRA, documents, pinned, pods, validator

FOLDER = INFRA / "kuberay"
MANIFESTS = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
ALL = [document for path in MANIFESTS for document in documents(path)]


def kind(document: dict[str, Any]) -> str:
    return f"{document['apiVersion']}/{document['kind']}"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_is_valid(path: Path):
    for document in documents(path):
        assert [error.message for error in validator(kind(document)).iter_errors(document)] == []


def test_a_misspelt_key_does_not_pass():
    for document in ALL:
        wrong = copy.deepcopy(document)
        wrong["spec" if "spec" in wrong else "metadata"]["replicaz"] = 1
        assert not validator(kind(document)).is_valid(wrong)


def test_what_is_listed_is_there_and_all_that_stays_is_listed():
    (listing,) = documents(FOLDER / "kustomization.yaml")
    assert set(listing["resources"]) == {path.name for path in MANIFESTS} - {"rayjob.yaml"}
    assert {d["metadata"].get("namespace", listing["namespace"]) for d in ALL} == {listing["namespace"]}


def test_every_pod_meets_the_restricted_standard_that_its_namespace_enforces():
    found = [spec for document in ALL for spec in pods(document)]
    assert len(found) == 8
    for spec in found:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")


def test_secrets_are_named_and_never_written():
    names = ("PASSWORD", "SECRET", "TOKEN", "ACCESS_KEY")
    for spec in (spec for document in ALL for spec in pods(document)):
        for variable in (v for container in spec["containers"] for v in container["env"]):
            if any(word in variable["name"] for word in names):
                assert set(variable) == {"name", "valueFrom"}
                assert not variable["valueFrom"]["secretKeyRef"].get("optional")


def clusters() -> list[dict[str, Any]]:
    by_kind = {document["kind"]: document.get("spec", {}) for document in ALL}
    return [by_kind["RayCluster"], by_kind["RayJob"]["rayClusterSpec"]]


def test_ray_asks_for_a_token_and_hears_only_its_namespace():
    for spec in clusters():
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["networkPolicy"]["mode"] == "DenyAllIngress"
        assert spec["rayVersion"] == pinned("ray")
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_run_of_its_own_has_the_cluster_that_stays():
    first, second = clusters()
    assert first == second
