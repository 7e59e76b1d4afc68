"""`ray up` by Ray's own validator, Slurm's script by bash and shellcheck."""

from __future__ import annotations

import copy
import shutil
import subprocess

import pytest
import yaml

from tests.infra.documents import INFRA

AWS = INFRA / "aws" / "cluster.yaml"
SLURM = INFRA / "slurm" / "latentmill.sbatch"


def test_ray_accepts_the_aws_cluster_and_no_misspelt_one():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(AWS.read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    config["max_wokers"] = 1
    with pytest.raises(ValidationError, match="max_wokers"):
        validate_config(prepare_config(config))


def test_the_aws_head_asks_for_a_token_and_listens_to_itself():
    text = AWS.read_text()
    assert "--dashboard-host=127.0.0.1" in text
    assert "RAY_AUTH_TOKEN" in text
    config = yaml.safe_load(text)
    nodes = config["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert all(node["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for node in nodes.values())


def test_slurms_script_parses():
    subprocess.run(["bash", "-n", SLURM], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck: apt-get install shellcheck")
def test_shellcheck_finds_nothing():
    assert subprocess.run(["shellcheck", SLURM], capture_output=True, text=True).stdout == ""


def test_slurms_script_refuses_to_start_without_what_it_needs():
    done = subprocess.run(["bash", SLURM], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode != 0
    assert "name a recipe" in done.stderr
    needs = {"LATENTMILL_STORE": "s3://b/s", "MLFLOW_TRACKING_URI": "http://m", "LATENTMILL_ENV": "/env"}
    for missing in needs:
        rest = {name: value for name, value in needs.items() if name != missing}
        run = ["bash", SLURM, "quickstart"]
        done = subprocess.run(run, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **rest})
        assert done.returncode != 0
        assert f"set {missing}" in done.stderr
