from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from pipelines import tracking
from pipelines.dataset import write_manifest
from pipelines.models import SnapshotFolder
from pipelines.registry import CANDIDATE, CHAMPION, Registry, RegistryError
from pipelines.versions import Version
from tests.pipelines.toys import World


def snapshot(store: Storage, weight: int, *, fingerprint: str = "") -> SnapshotFolder:
    """A finished training whose weights are a number."""
    fingerprint = fingerprint or f"f{weight}"
    folder = store.folder("train").folder(fingerprint)
    data = str(weight).encode()
    folder.replace("weights.json", data)
    files = {"weights.json": hashlib.sha256(data).hexdigest()}
    said = {"stage": "train", "fingerprint": fingerprint, "snapshot": {"weight": weight, "files": files}}
    write_manifest(folder, said, kind="snapshot")
    return SnapshotFolder.open(folder)


def registered(registry: Registry, made: SnapshotFolder, name: str = "fox", **more: Any) -> Version:
    return registry.register(name, url=made.storage.url, manifest=made.manifest, **more)


@pytest.fixture
def registry(mlflow_store: Storage) -> Registry:
    return Registry.of(mlflow_store)


def test_a_snapshot_is_one_version_however_often_it_is_registered(
    registry: Registry, mlflow_store: Storage
) -> None:
    one, two = snapshot(mlflow_store, 1), snapshot(mlflow_store, 2)
    first = registered(registry, one)
    assert registered(registry, one) == registry.resolve("models:/fox/1") == registry.at("fox", CANDIDATE)
    second = registered(registry, two)
    assert (first.number, second.number) == (1, 2)
    assert registry.resolve("models:/fox@candidate").number == 2
    assert first.digest == one.digest()
    assert registered(registry, one).number == 1
    assert registry.resolve("models:/fox@candidate").number == 2  # a known one takes no alias away
    assert [v.number for v in registry.versions("fox")] == [2, 1]
    assert registry.names() == ["fox"]
    assert registry.place(first) == one.storage


def test_of_two_that_register_at_once_the_first_version_stands(
    registry: Registry, mlflow_store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = snapshot(mlflow_store, 1)
    other = Registry.of(mlflow_store)
    find, seen = Registry.find, []

    def late(self: Registry, name: str, digest: str) -> Version | None:
        """The other one registers between the look and the registration."""
        found = find(self, name, digest)
        if self is registry and not seen:
            seen.append(1)
            registered(other, made)
        return found

    monkeypatch.setattr(Registry, "find", late)
    assert registered(registry, made).number == 1
    assert [v.number for v in registry.versions("fox")] == [1]


def test_the_champion_moves_forth_and_back(registry: Registry, mlflow_store: Storage) -> None:
    one, two = (registered(registry, snapshot(mlflow_store, n)) for n in (1, 2))
    with pytest.raises(ValueError, match="no champion"):
        registry.roll_back("fox", by="test", why="")
    for version in (one, two, two):  # the last as after a crash
        registry.promote(version, by="test", why="because")
    champion = registry.resolve("models:/fox@champion")
    assert (champion.number, champion.before, champion.tags["promoted_why"]) == (2, 1, "because")
    assert champion.aliases == (CANDIDATE, CHAMPION)
    left, now = registry.roll_back("fox", by="test", why="it draws cats")
    assert (left.number, now.number) == (2, 1)
    assert registry.resolve("models:/fox@champion").number == 1
    assert registry.resolve("models:/fox/2").tags["rolled_back_why"] == "it draws cats"
    with pytest.raises(ValueError, match="there is none before"):
        registry.roll_back("fox", by="test", why="")


def test_who_is_champion_is_held_to_the_one_before(registry: Registry, mlflow_store: Storage) -> None:
    """So what a comparison depends on is the same before and after it has moved the alias."""
    made = [snapshot(mlflow_store, n) for n in range(3)]
    versions = [registered(registry, m) for m in made]
    assert registry.rival("fox", made[0].digest()) is None
    registry.promote(versions[0], by="test", why="")
    assert registry.rival("fox", made[0].digest()) is None
    before = registry.rival("fox", made[1].digest())
    registry.promote(versions[1], by="test", why="")
    after = registry.rival("fox", made[1].digest())
    assert before is not None
    assert after is not None
    assert before.number == after.number == 1
    against = registry.rival("fox", made[2].digest())
    assert against is not None
    assert against.number == 2
    made[0].storage.delete_folder()
    assert registry.rival("fox", made[1].digest()) is None
    made[1].storage.delete_folder()
    with pytest.raises(ValueError, match="has no snapshot any more"):
        registry.place(against)


def test_a_store_that_moved_keeps_its_models(mlflow_store: Storage, tmp_path: Path) -> None:
    made = snapshot(mlflow_store, 1)
    registered(Registry.of(mlflow_store), made)
    shutil.move(mlflow_store.url, tmp_path / "elsewhere")
    moved = Registry.of(Storage.at(tmp_path / "elsewhere"))
    place = moved.place(moved.resolve("models:/fox/1"))
    assert place.url == str(tmp_path / "elsewhere" / "train" / "f1")
    assert SnapshotFolder.open(place).digest() == made.digest()


def test_what_there_is_not_is_told_in_one_line(registry: Registry, mlflow_store: Storage) -> None:
    registered(registry, snapshot(mlflow_store, 1))
    for reference, said in (
        ("models:/fox@champion", r"no models:/fox@champion \(its aliases: candidate\)"),
        ("models:/fox/7", "no models:/fox/7"),
        ("models:/cat@champion", r"no models:/cat@champion \(models: fox\)"),
        ("models:/fox", "not a registered model"),
    ):
        with pytest.raises(ValueError, match=said) as raised:
            registry.resolve(reference)
        assert "\n" not in str(raised.value)


def test_a_look_into_a_store_without_a_registry_makes_none_and_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from cluster.storage import Storage; from pipelines.registry import Registry;"
        f"r = Registry.of(Storage.at({str(tmp_path)!r}));"
        "assert r.names() == r.versions('x') == [] and r.at('x', 'champion') is None;"
        "assert not {'mlflow', 'torch', 'ray'} & set(sys.modules)"
    )
    env = {k: v for k, v in tracking.environment().items() if k != "MLFLOW_TRACKING_URI"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_is_told_in_one_line_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        start = time.monotonic()
        with pytest.raises(RegistryError) as raised:
            Registry.of(Storage.at("s3://bucket/store")).resolve("models:/fox@champion")
        assert time.monotonic() - start < 20
    assert str(raised.value).startswith(f"MLflow at {uri} ")
    assert "\n" not in str(raised.value)


class Line(World):
    """numbers -> twice -> scaled by the champion -> verdict, and a side branch that knows no model."""

    def line(self) -> Any:
        recipe = super().line()
        recipe.stages.pop("learn")
        for name, changes in {
            "scaled": {"model": "models:/fox@champion"},
            "verdict": {"model": None},
        }.items():
            kind = type(recipe.stages[name])
            recipe.stages[name] = kind(**{**vars(recipe.stages[name]), **changes})
        return recipe


def test_moving_an_alias_runs_what_depends_on_it_and_nothing_else(
    registry: Registry, mlflow_store: Storage, tmp_path: Path
) -> None:
    world = Line(tmp_path)
    world.numbers(1, 2, 3)
    one, two, same = (
        registered(registry, m)
        for m in (
            snapshot(mlflow_store, 5),
            snapshot(mlflow_store, 7),
            snapshot(mlflow_store, 7, fingerprint="other"),
        )
    )
    assert same.number == two.number
    with pytest.raises(ValueError, match="no models:/fox@champion"):
        world.run()
    registry.promote(one, by="test", why="")
    assert set(world.run()) == {"numbers", "twice", "scaled", "verdict", "side"}
    assert world.run() == []
    registry.promote(two, by="test", why="")
    assert world.run() == ["scaled", "verdict"]
    times = mlflow_store.folder("times")
    models = [_model_of(times.folder(name)) for name in times.folders()]
    assert {
        "reference": "models:/fox@champion",
        "model_version": 2,
        "stage": "train",
        "fingerprint": "f7",
        "digest": two.digest,
        "url": two.url,
    } in models
    # another name and version of equal weights is the same model
    copy = snapshot(mlflow_store, 7, fingerprint="copy")
    hound = registered(registry, copy, name="hound")
    assert hound.digest == two.digest
    registry.promote(hound, by="test", why="")
    recipe = world.line()
    recipe.stages["scaled"] = dataclasses.replace(recipe.stages["scaled"], model="models:/hound@champion")
    assert world.run(recipe) == []


def test_an_alias_that_moves_during_a_run_waits_for_the_next(
    registry: Registry, mlflow_store: Storage, tmp_path: Path
) -> None:
    world = Line(tmp_path)
    world.numbers(1, 2)
    one, two = (registered(registry, snapshot(mlflow_store, n)) for n in (5, 7))
    registry.promote(one, by="test", why="")

    def move(event: dict[str, Any]) -> None:
        if event["kind"] == "stage_start" and event["stage"] == "scaled":
            registry.promote(two, by="test", why="")

    assert set(world.run(listeners=[move])) >= {"scaled", "verdict"}
    assert world.run() == ["scaled", "verdict"]


def _model_of(folder: Storage) -> dict[str, Any] | None:
    return json.loads(folder.read("manifest.json"))["inputs"].get("model")
