"""Retries of rejects: what is made once more, what is copied, and what a recipe goes on with afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

import pipelines.stages
import pipelines.tracking
from pipelines import config, pipeline
from pipelines.__main__ import main
from pipelines.dataset import Dataset
from pipelines.runner.plan import plan
from pipelines.runner.retry import rejects_of, remember, retriable, retried
from pipelines.stage import Input, Row, Sample, ShardPlan, ShardStage, execution
from tests.pipelines.toys import Learn, Numbers, Times, ToyRecipe, World, note


@dataclass(frozen=True, kw_only=True)
class Served(ShardStage):
    """Doubles its numbers with the help of a server that may be down: `down` lists the keys it fails on."""

    primary: ClassVar[str] = "numbers"

    numbers: Annotated[str, Input("dataset", ("num",))]
    down: str = execution("")
    log: str | None = execution(None)

    def open(self, inputs: Any) -> Callable[[ShardPlan, Sequence[Row]], Iterable[Sample]]:
        def make(shard: ShardPlan, rows: Sequence[Row]) -> Iterable[Sample]:
            failing = Path(self.down).read_text().split()
            records = {r.key: r for r in inputs["numbers"].read(shard.name, columns=("num",))}
            for row in rows:
                note(self.log, "served", row.key)
                number = int(records[row.key].members["num"])
                made = Sample(key=row.key, members={"num": str(2 * number).encode()})
                yield Sample(key=row.key, reject="no_answer") if row.key in failing else made

        return make

    def summary(self) -> str:
        return "served numbers"


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.numbers(*range(25))
    (tmp_path / "down").write_text("003 004 017")
    return world


def line(world: World, **changes: Any) -> ToyRecipe:
    fields = {"down": str(world.root / "down"), "max_rejects": 0.5, **changes}
    return ToyRecipe(
        {
            "numbers": world.stage(Numbers, "numbers", folder=str(world.root / "numbers"), bad=("007",)),
            "served": world.stage(Served, "served", numbers="numbers", **fields),
            "behind": world.stage(Times, "behind", numbers="served"),
            "learn": world.stage(Learn, "learn", numbers="served"),
        }
    )


def retry(world: World, recipe: ToyRecipe) -> list[str]:
    """As the command does it; the stages that ran."""
    planned = plan(recipe, world.store)
    remember(world.store, recipe.name, [str(planned[name].fingerprint) for name in retriable(planned)])
    return world.run(recipe)


def keys(world: World, recipe: ToyRecipe, stage: str) -> set[str]:
    dataset = Dataset.open(plan(recipe, world.store)[stage].folder)  # pyright: ignore[reportArgumentType]
    return {r.key for s in dataset.shards for r in dataset.read(s.name, columns=("num",))}


def test_rejects_alone_are_made_again_and_what_reads_them_follows(world: World) -> None:
    recipe = line(world)
    world.run(recipe)
    assert retriable(plan(recipe, world.store)) == {"numbers": {"bad_number": 1}, "served": {"no_answer": 3}}
    before = {name: plan(recipe, world.store)[name].fingerprint for name in recipe.stages}
    (world.root / "down").write_text("017")
    start = len(world.log_from())
    assert retry(world, recipe) == ["numbers", "served", "behind", "learn"]
    made = world.log_from(start)
    # inherited rejects are nobody's to retry behind: 007 fails in `numbers` alone
    assert [key for kind, key in made if kind == "numbers"] == ["007"]
    assert sorted(key for kind, key in made if kind == "served") == ["003", "004", "017"]
    assert sorted(key for kind, key in made if kind == "times") == ["003", "004"]
    assert keys(world, recipe, "behind") == {f"{n:03d}" for n in range(25)} - {"007", "017"}
    now = plan(recipe, world.store)
    assert now.done
    manifest = Dataset.open(now["served"].folder).manifest  # pyright: ignore[reportArgumentType]
    assert manifest["meaning"]["retry"] == before["served"]
    assert manifest["counts"]["reasons"] == {"bad_number": 1, "no_answer": 1}


def test_the_recipe_goes_on_with_the_retry_and_a_changed_one_does_not(world: World) -> None:
    recipe = line(world)
    world.run(recipe)
    old = plan(recipe, world.store)["served"].fingerprint
    (world.root / "down").write_text("")
    retry(world, recipe)
    assert world.run(recipe) == []
    new = plan(recipe, world.store)["served"]
    assert new.fingerprint != old
    # by a line in the recipe it is the same one in a store that remembers nothing
    (world.root / "store" / "runs" / "toy" / "retried.json").unlink()
    assert plan(recipe, world.store)["served"].fingerprint == old
    kept = ToyRecipe({**recipe.stages, "served": line(world, retry=old).stages["served"]})
    assert plan(kept, world.store)["served"].fingerprint == new.fingerprint
    assert plan(kept, world.store)["served"].state == "done"
    # another meaning of `numbers` has nothing to do with what was retried
    remember(world.store, recipe.name, [str(old)])
    stages = {**recipe.stages, "numbers": world.stage(Numbers, "n", folder=str(world.root / "numbers"))}
    assert plan(ToyRecipe(stages), world.store)["numbers"].stage.retry is None


def test_a_retry_that_recovers_nothing_can_be_tried_again(world: World) -> None:
    recipe = line(world)
    world.run(recipe)
    behind = plan(recipe, world.store)["behind"].fingerprint
    for _ in range(2):
        assert retry(world, recipe) == ["numbers", "served"]
        assert plan(recipe, world.store)["behind"].fingerprint == behind
    (world.root / "down").write_text("")
    assert retry(world, recipe) == ["numbers", "served", "behind", "learn"]
    assert len(retried(world.store, recipe.name)) == 6


def test_a_stage_that_was_stopped_by_its_rejects_is_retried_too(world: World) -> None:
    recipe = line(world, max_rejects=0.1)
    with pytest.raises(pipeline.StageError, match="rejected"):
        world.run(recipe)
    with pytest.raises(pipeline.StageError, match="rejected"):
        world.run(recipe)
    (world.root / "down").write_text("")
    start = len(world.log_from())
    retry(world, recipe)
    served = [key for kind, key in world.log_from(start) if kind == "served"]
    assert "003" in served
    assert "005" not in served, "of the shards that were there the good samples are copied"
    stage = plan(recipe, world.store)["served"]
    assert rejects_of(stage.stage, stage.folder) == {}  # pyright: ignore[reportArgumentType]


RECIPE = """# latentmill run toy
name: toy
stages:
  numbers: {stage: numbers, folder: FOLDER, max_rejects: 0.5}
  served: {stage: served, numbers: numbers, down: DOWN, max_rejects: 0.5}
"""


def test_the_flag_says_what_it_retried(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RECIPE.replace("FOLDER", str(world.root / "numbers")).replace("DOWN", str(world.root / "down"))
    (world.root / "toy.yaml").write_text(text)
    stages = {"numbers": "tests.pipelines.toys:Numbers", "served": f"{__name__}:Served"}
    monkeypatch.setattr(pipelines.stages, "STAGES", stages)
    monkeypatch.setattr(
        pipelines.tracking, "Tracker", lambda *a, **k: (_ for _ in ()).throw(ValueError("no"))
    )
    monkeypatch.setenv("LATENTMILL_STORE", world.store.url)
    monkeypatch.setenv("COLUMNS", "200")
    command = ["run", str(world.root / "toy.yaml"), "--executor", "inline"]
    (world.root / "down").write_text("")
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--retry-rejects"]) == 0
    assert "Nothing to retry: no stage has rejected anything itself." in capsys.readouterr().out
    world.numbers(*range(40))
    (world.root / "down").write_text("030 031")
    assert main(command) == 0
    (world.root / "down").write_text("031")
    capsys.readouterr()
    assert main([*command, "--retry-rejects"]) == 0
    out = capsys.readouterr().out
    assert "retrying   served: 2 rejected (2 no_answer)" in out
    assert "retried    served: 1 of 2 recovered, 1 rejected again (1 no_answer)" in out
    fingerprint = plan(config.load(str(world.root / "toy.yaml")), world.store)["served"].stage.retry
    assert f"retry: {fingerprint}" in out
    (world.root / "down").write_text("")
    assert main([*command, "--retry-rejects", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["retried"]["served"]
    assert (said["rejected_before"], said["rejected"], said["recovered"]) == ({"no_answer": 1}, {}, 1)
