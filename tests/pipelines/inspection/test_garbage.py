"""What gc takes from a store, and above all what it does not."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipelines.stages
from cluster.lease import Lease
from cluster.storage import Storage
from pipelines.dataset import Dataset
from pipelines.inspection import garbage
from pipelines.inspection.garbage import find, sweep
from pipelines.inspection.reach import reach
from pipelines.registry import Registry
from pipelines.runner.plan import plan
from pipelines.runner.retry import remember
from pipelines.view import ViewRow, write_view
from tests import s3
from tests.pipelines.toys import ToyRecipe, World

TOYS = {name.lower(): f"tests.pipelines.toys:{name}" for name in ("Numbers", "Times", "Learn", "Judge")}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.stages, "STAGES", TOYS)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.numbers(*range(12))
    return world


def changed(world: World, **changes: dict[str, Any]) -> ToyRecipe:
    return World(world.root, changes).line()


def places(store: Storage, **arguments: Any) -> set[str]:
    return {one.place for one in find(store, **{"grace": 0.0, **arguments}).garbage}


def swept(store: Storage, **arguments: Any) -> dict[str, str]:
    return {one.place: why for one, why in sweep(store, **{"grace": 0.0, "patience": 1.0, **arguments})}


def outputs(world: World, recipe: ToyRecipe) -> dict[str, str]:
    planned = plan(recipe, world.store)
    return {s.name: f"{s.stage.name()}/{s.fingerprint}" for s in planned.stages}


def whole(world: World, recipe: ToyRecipe) -> None:
    planned = plan(recipe, world.store)
    assert planned.done
    for stage in planned.stages:
        assert stage.folder is not None
        if stage.stage.output == "dataset":
            Dataset.open(stage.folder).verify()


def test_what_the_last_run_made_stays_and_what_it_left_behind_goes(world: World) -> None:
    before, after = world.line(), changed(world, twice={"factor": 3})
    world.run(before)
    assert places(world.store) == set()
    old = outputs(world, before)
    world.run(after)
    gone = {old[name] for name in ("twice", "learn", "scaled", "verdict")}
    old_checkpoints = find(world.store, grace=0.0).garbage
    assert {g.place for g in old_checkpoints} - gone == {
        g.place for g in old_checkpoints if g.reason == "checkpoints"
    }
    assert sum(g.reason == "checkpoints" for g in old_checkpoints) == 2
    assert places(world.store) >= gone
    assert places(world.store, grace=3600.0) == set()
    assert find(world.store, grace=3600.0).young == old_checkpoints
    report = swept(world.store)
    assert set(report) >= gone
    assert set(report.values()) == {""}
    whole(world, after)
    assert places(world.store) == set()
    # another run makes it all again, from what is left
    assert world.run(before) == ["twice", "learn", "scaled", "verdict"]


def test_a_run_that_had_nothing_to_do_is_the_last_one_too(world: World) -> None:
    before, after = world.line(), changed(world, twice={"factor": 3})
    world.run(before)
    world.run(after)
    assert world.run(before) == []
    taken = places(world.store)
    assert not taken & set(outputs(world, before).values())
    assert taken >= {outputs(world, after)[name] for name in ("twice", "learn", "scaled", "verdict")}
    assert not places(world.store, recipes=[after])


def test_runs_of_part_of_a_recipe_keep_the_rest(world: World) -> None:
    world.run()
    world.run(changed(world, twice={"factor": 3}), until="twice")
    assert places(world.store) == set()


def test_a_store_from_before_runs_told_what_they_use(world: World) -> None:
    world.run()
    world.run(changed(world, twice={"factor": 3}))
    (world.root / "store/runs/toy/uses.json").unlink()
    kept = outputs(world, changed(world, twice={"factor": 3}))
    assert not places(world.store) & set(kept.values())


def test_retried_datasets_views_and_their_sources_stay(world: World) -> None:
    world.changes = {"numbers": {"bad": ("003",), "max_rejects": 0.5}}
    world.run(until="numbers")
    first = outputs(world, world.line())["numbers"]
    remember(world.store, "toy", [first.partition("/")[2]])
    world.run(until="numbers")
    second = outputs(world, world.line())["numbers"]
    assert first != second
    assert places(world.store) == set()
    # a view that only a recipe of another name reaches
    source = Dataset.open(world.store.folder("numbers").folder(first.partition("/")[2]))
    view = world.store.folder("times").folder("a" * 32)
    rows = [
        ViewRow(key=k, source="n", shard="00000", row=n) for n, k in enumerate(source.index("00000").keys)
    ]
    manifest = write_view(view, {"n": source}, rows)
    from pipelines.dataset import write_manifest

    write_manifest(view, {**manifest, "stage": "times"})
    used = {"x": [f"times/{'a' * 32}"]}
    world.store.folder("runs").folder("other").replace("uses.json", json.dumps(used).encode())
    (world.root / "store/runs/toy/uses.json").unlink()
    (world.root / "store/runs/toy/events.jsonl").unlink()
    (world.root / "store/runs/toy/last.json").unlink()
    assert places(world.store) == {second}


def test_models_with_an_alias_keep_what_they_were_made_from(world: World, mlflow_store: Storage) -> None:
    """Also the champion before, so that it can be rolled back; versions without an alias go."""
    registry, snapshots = Registry.of(mlflow_store), []
    for factor in (2, 3, 4, 5):
        recipe = changed(world, twice={"factor": factor})
        world.run(recipe, until="learn")
        place = plan(recipe, world.store)["learn"].folder
        assert place is not None
        manifest = json.loads(place.read("manifest.json"))
        version = registry.register("fox", url=place.url, manifest=manifest)
        snapshots.append((outputs(world, recipe), version))
    for _, version in (snapshots[0], snapshots[1]):
        registry.promote(version, by="hand", why="test")
    registry.point(snapshots[1][1], "candidate")
    world.run(changed(world, twice={"factor": 6}), until="learn")
    found = find(mlflow_store, grace=0.0)
    taken = {one.place: one for one in found.garbage}
    for kept, _ in snapshots[:2]:
        assert not {kept["twice"], kept["learn"]} & set(taken)
    for lost, _ in snapshots[2:]:
        assert {lost["twice"], lost["learn"]} <= set(taken)
    assert taken[snapshots[2][0]["learn"]].detail == "version 3 of fox"
    assert sum(one.reason == "checkpoints" for one in found.garbage) == 2
    assert len(places(mlflow_store, registry=False)) == len(taken) + 6


def test_trainings_and_writes_in_progress_are_left_alone(world: World) -> None:
    world.run()
    lineage = world.store.folder("checkpoints").folder("b" * 32)
    lineage.replace("at-1", b"x")
    lease = Lease(lineage.folder("lease"))
    lease.acquire()
    partial = world.root / "store/numbers" / ("c" * 32) / ".00000.tar.1.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    loose = world.root / "store/.x.partial"
    loose.write_bytes(b"half")
    assert places(world.store, grace=60.0) == set()
    lease.release()
    hour = time.time() - 3600
    for path in (*(world.root / "store/checkpoints" / ("b" * 32)).rglob("*"), partial, loose, partial.parent):
        os.utime(path, (hour, hour))
    found = {one.place: one.reason for one in find(world.store, grace=60.0).garbage}
    assert found == {
        f"checkpoints/{'b' * 32}": "checkpoints",
        f"numbers/{'c' * 32}": "unfinished",
        ".x.partial": "leftover",
    }
    assert set(swept(world.store, grace=60.0).values()) == {""}
    assert not loose.exists()
    assert not partial.parent.exists()
    whole(world, world.line())


def test_a_run_that_begins_between_the_plan_and_a_deletion_waits_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = world.line(), changed(world, twice={"factor": 3})
    world.run(before)
    unbroken = world.files()
    world.run(after)
    real, runs = garbage._remove, list[threading.Thread]()

    def remove(store: Storage, one: garbage.Garbage) -> None:
        if not runs:
            runs.append(threading.Thread(target=world.run, args=(before,), kwargs={"patience": 1.0}))
            runs[0].start()
            while not list((world.root / "store/runs/toy/live").glob("*.json")):
                time.sleep(0.005)
        assert not [words for words in world.log_from(start) if words[0] == "times"], "the run has waited"
        real(store, one)

    monkeypatch.setattr(garbage, "_remove", remove)
    start = len(world.log_from())
    report = swept(world.store)
    runs[0].join(60)
    used = {place: why for place, why in report.items() if why}
    # what the run had found finished when it began is left to it
    assert set(used.values()) == {"used now by the run of toy in progress"}
    assert used
    whole(world, before)
    assert {name: digest for name, digest in world.files().items() if name in unbroken} == unbroken


@pytest.mark.parametrize("turns", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_races_of_a_run_and_a_sweep(tmp_path: Path, turns: int) -> None:
    """Whichever comes first: the run ends with everything there, byte for byte."""
    chance = random.Random(5)
    world = World(tmp_path)
    world.numbers(*range(3))
    recipes = [ToyRecipe({n: changed(world, twice={"factor": f}).stages[n] for n in ("numbers", "twice")})
               for f in (2, 3)]  # fmt: skip
    truth: list[dict[str, str]] = []
    for recipe in recipes:
        world.run(recipe)
        names = set(outputs(world, recipe).values())
        truth.append({f: d for f, d in world.files().items() if f.rpartition("/")[0] in names})
    taken = 0
    for turn in range(turns):
        mine = turn % 2  # the other one is in use, and this one garbage
        failures: list[BaseException] = []

        def run(recipe: ToyRecipe = recipes[mine], wait: float = chance.uniform(0, 0.08)) -> None:
            time.sleep(wait)
            try:
                world.run(recipe, patience=0.5)
            except BaseException as error:
                failures.append(error)  # noqa: B023 - joined within this turn

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(chance.uniform(0, 0.04))
        report = swept(world.store, patience=0.5, registry=False)
        thread.join(60)
        assert not failures
        taken += sum(not why for why in report.values())
        whole(world, recipes[mine])
        files = world.files()
        assert all(files[name] == digest for name, digest in truth[mine].items())
    assert taken > turns // 6, "the sweep was first often enough for this to mean something"


def test_a_recipe_whose_outputs_cannot_be_told_stops_everything(world: World) -> None:
    world.run()
    lost = changed(world, numbers={"folder": str(world.root / "nowhere")})
    with pytest.raises(ValueError, match="What toy uses cannot be told; numbers: "):
        places(world.store, recipes=[lost])


def test_a_store_in_a_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    with s3.serving() as url:
        for name, value in s3.credentials(url).items():
            monkeypatch.setenv(name, value)
        store = Storage.at(f"s3://{s3.new_bucket()}/store")
        used, unused = f"numbers/{'a' * 32}", f"numbers/{'b' * 32}"
        for place in (used, unused):
            store.replace(f"{place}/manifest.json", b'{"stage": "numbers"}')
            store.replace(f"{place}/00000.parquet", b"x" * 100)
        store.replace("runs/toy/uses.json", json.dumps({"numbers": [used]}).encode())
        with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
            find(store, grace=0.0)
        assert places(store, grace=3600.0, registry=False) == set()
        assert swept(store, grace=-2.0, registry=False) == {unused: ""}
        assert store.folder("numbers").folders() == ["a" * 32]
        assert not Lease(store.folder("gc")).busy()


def test_reach_names_what_uses_a_thing(world: World) -> None:
    world.run()
    found = reach(world.store)
    assert set(found.folders.values()) == {"last run of toy"}
    assert found.unsure == []


@pytest.fixture(autouse=True)
def no_waiting_threads() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name == "lease"]


def test_what_was_read_of_sources_goes_while_nothing_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "cache/sources/0123456789abcdef0123"
    world.run()  # that it has ended must not keep it for ever
    world.store.folder(place).put_if_absent("seen/a.parquet", b"rows")
    assert places(world.store, grace=3600.0) == set(), "it is young"
    assert places(world.store) == {place}
    with monkeypatch.context() as patch:
        patch.setattr(garbage, "in_progress", lambda store: True)
        assert "a run goes on" in swept(world.store)[place]
    assert swept(world.store) == {place: ""}
    assert not world.store.folder(place).list()
