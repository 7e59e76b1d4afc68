from __future__ import annotations

import json
from pathlib import Path

import pytest

import pipelines.stages
from pipelines.__main__ import main
from pipelines.commands.gc import seconds
from tests.pipelines.inspection.test_garbage import TOYS, changed
from tests.pipelines.toys import World


def test_times_are_read_with_their_unit() -> None:
    assert [seconds(text) for text in ("30min", "12h", "7d", "0", "1.5h")] == [1800, 43200, 604800, 0, 5400]
    with pytest.raises(ValueError, match='--older-than is "soon"; write'):
        seconds("soon")


def test_nothing_is_removed_before_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipelines.stages, "STAGES", TOYS)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    world = World(tmp_path)
    world.numbers(*range(12))
    world.run()
    world.run(changed(world, twice={"factor": 3}))
    before, command = world.files(), ["gc", "--store", world.store.url]
    assert main(command) == 0
    assert "Nothing to remove." in capsys.readouterr().out
    assert main([*command, "--older-than", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == sum(one["bytes"] for one in said["garbage"]) > 0
    assert main([*command, "--older-than", "0"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "can be removed: latentmill gc --delete" in out.replace(".venv/bin/", "").replace(
        "pytest", "latentmill"
    )
    assert world.files() == before
    assert main([*command, "--older-than", "0", "--delete"]) == 0
    out = capsys.readouterr().out
    assert "times        2" in out
    assert "Removed " in out
    assert set(before) - set(world.files()) == {
        name for name in before if any(name.startswith(one["place"]) for one in said["garbage"])
    }
    assert world.run(changed(world, twice={"factor": 3})) == []


def test_a_store_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--store", str(tmp_path / "none")]) == 2
    assert "There is no store at" in capsys.readouterr().err
