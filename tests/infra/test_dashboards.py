"""What Prometheus scrapes and Grafana shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.infra.documents import INFRA, ROOT

COMPOSE = INFRA / "compose"
GRAFANA = COMPOSE / "grafana"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((GRAFANA / "dashboards" / "latentmill.json").read_text())


def queries(dashboard: dict[str, Any]) -> list[str]:
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return panels + [variable["definition"] for variable in dashboard["templating"]["list"]]


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool: apt-get install prometheus")
def test_prometheus_accepts_its_configuration():
    command = ["promtool", "check", "config", "--syntax-only", COMPOSE / "prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool: apt-get install prometheus")
def test_prometheus_can_parse_every_query(dashboard: dict[str, Any], tmp_path):
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(panels)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(panels)} rules found" in done.stdout


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool: apt-get install prometheus")
def test_prometheus_accepts_the_alerts():
    done = subprocess.run(
        ["promtool", "check", "rules", COMPOSE / "rules.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((COMPOSE / "rules.yml").read_text())["groups"]
    return group["rules"]


def test_prometheus_is_given_the_alerts():
    (file,) = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["rule_files"]
    mounts = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]["prometheus"]["volumes"]
    assert f"./rules.yml:{file}:ro" in mounts


def test_every_metric_that_is_shown_is_made(dashboard: dict[str, Any]):
    asked = [*queries(dashboard), *(alert["expr"] for alert in alerts())]
    shown = {name for query in asked for name in re.findall(r"ray_(latentmill_\w+)", query)}
    files = [*(ROOT / "cluster").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
    made = {name for file in files for name in re.findall(r'"(latentmill_\w+)"', file.read_text())}
    assert shown
    assert shown <= made


def test_the_panels_do_not_overlap_and_say_what_they_show(dashboard: dict[str, Any]):
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_grafana_finds_what_it_is_told_of(dashboard: dict[str, Any]):
    (source,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "providers" / "latentmill.yaml").read_text())["providers"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    mounts = [mount.split(":")[:2] for mount in services["grafana"]["volumes"]]
    assert ["./grafana/dashboards", provider["options"]["path"]] in mounts
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/latentmill.json"
    assert source["url"].split(":")[1].strip("/") in services
