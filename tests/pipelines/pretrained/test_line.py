"""A recipe with a foreign autoencoder: planned, run, run again, changed, shown, and what of it gc takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.storage import Storage
from pipelines import config, pipeline
from pipelines.__main__ import main
from pipelines.arrays import from_npy
from pipelines.config import Recipe
from pipelines.dataset import Dataset
from pipelines.inspection.garbage import find, sweep
from pipelines.pipeline import plan
from pipelines.pretrained.folder import WHOLE
from tests.pipelines import tiny
from tests.pipelines.pretrained import foreign
from tests.pipelines.pretrained.foreign import COMMIT, REPO

torch.set_num_threads(1)
RECIPE = """
name: line
stages:
  images: {stage: ingest, source: {kind: folder, path: images}, size: 16}
  latents: {stage: encode, images: images, autoencoder: vae, micro_batch: 4}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "images").mkdir()
    for n in range(6):
        Image.fromarray(tiny.picture(n)).save(tmp_path / "images" / f"{n}.png")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def store(place: Path) -> Storage:
    return Storage.at(place / "store")


def read(place: Path, reference: str) -> Recipe:
    (place / "line.yaml").write_text(RECIPE.replace("vae", reference))
    return config.load(place / "line.yaml")


def ran(recipe: Recipe, store: Storage) -> tuple[tuple[str, ...], list[str]]:
    """Stages that ran, and the notes and progress that were told."""
    told: list[str] = []

    def listen(event: dict[str, object]) -> None:
        told.extend([str(event["text"])] if event["kind"] == "note" else [])

    result = pipeline.run(recipe, store, executor="inline", record=False, listeners=[listen])
    return result.ran, told


def moments(recipe: Recipe, store: Storage) -> np.ndarray:
    folder = plan(recipe, store)["latents"].folder
    assert folder is not None
    dataset = Dataset.open(folder)
    records = [r for s in dataset.shards for r in dataset.read(s.name, columns=("moments.npy",))]
    return np.stack([from_npy(record.members["moments.npy"]) for record in records])


def truth(theirs: object) -> np.ndarray:
    pixels = torch.stack([torch.from_numpy(tiny.picture(n).copy()).permute(2, 0, 1) for n in range(6)])
    return foreign.moments(theirs, pixels.float() / 127.5 - 1).numpy()


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whatever the order of the images."""
    return all(any(np.allclose(one, other, atol=2e-3, rtol=2e-3) for other in found) for one in wanted)


def test_a_folders_weights_decide_what_is_encoded(place: Path, store: Storage) -> None:
    theirs = foreign.model()
    foreign.save(theirs, place / "sd")
    recipe = read(place, "./sd")
    planned = plan(recipe, store, lenient=True)
    assert planned["latents"].state == "after", "images are not there yet either"
    assert "images" in ran(recipe, store)[0]
    assert same(moments(recipe, store), truth(theirs))
    assert ran(recipe, store) == ((), [])
    manifest = json.loads(plan(recipe, store)["latents"].folder.read("manifest.json"))  # type: ignore[union-attr]
    assert manifest["inputs"]["autoencoder"]["stage"] == "pretrained"
    shutil.copytree(place / "sd", place / "moved")
    assert plan(read(place, "./moved"), store).done, "paths decide nothing"

    other = foreign.model(seed=1)
    foreign.save(other, place / "sd")
    recipe = read(place, "./sd")
    waiting = plan(recipe, store, lenient=True)["latents"]
    assert waiting.state == "run"
    assert "sd is not in the store yet: run reads it in" in waiting.reason
    finished, told = ran(recipe, store)
    assert finished == ("latents",)
    assert told == [waiting.reason]
    assert same(moments(recipe, store), truth(other))
    assert not same(moments(recipe, store), truth(theirs))


def test_a_model_of_the_hub_is_planned_without_and_run_with_it(
    place: Path, store: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{REPO}@{COMMIT}"
    recipe = read(place, reference)
    ran(Recipe("line", {"images": recipe.stages["images"]}, recipe.text), store)
    waiting = plan(recipe, store)["latents"]
    assert (waiting.state, waiting.identity) == ("run", None)
    assert waiting.reason == f"{REPO}@{COMMIT[:7]} is not fetched yet: run fetches it"
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["plan", str(place / "line.yaml"), "--store", store.url]) == 0
    assert "is not fetched yet: run fetches it" in capsys.readouterr().out
    with pytest.raises(pipeline.StageError, match="HF_HUB_OFFLINE is set"):
        ran(recipe, store)

    theirs = foreign.model()
    files = foreign.save(theirs, place / "files")
    foreign.hub_cache(place / "hub", files)
    assert ran(recipe, store)[0] == ("latents",)
    assert same(moments(recipe, store), truth(theirs))
    shutil.rmtree(place / "hub")
    assert ran(recipe, store) == ((), [])
    assert plan(read(place, "./files"), store).done, "the same weights in a folder"

    assert "lacks its commit" in plan(read(place, f"{REPO}@main"), store, lenient=True)["latents"].reason
    with pytest.raises(ValueError, match="lacks its commit"):
        ran(read(place, REPO), store)


def test_gc_takes_what_nothing_names_and_show_tells_what_is_there(
    place: Path, store: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.hub_cache(place / "hub", foreign.save(foreign.model(), place / "first"))
    foreign.save(foreign.model(seed=1), place / "second")
    recipe = read(place, f"{REPO}@{COMMIT}")
    ran(recipe, store)
    first = plan(recipe, store)["latents"].sources["autoencoder"]
    assert first is not None
    assert {one.reason for one in find(store, grace=0.0, registry=False).garbage} == {"source"}
    assert find(store, grace=0.0, registry=False).unsure == []
    assert main(["show", first.url, "--out", str(place / "shown")]) == 0
    out = capsys.readouterr().out
    assert "class: AutoencoderKL" in out
    assert "files: autoencoder.safetensors" in out

    (place / "store" / "pretrained" / ("a" * 32)).mkdir()
    (place / "store" / "pretrained" / ("a" * 32) / WHOLE).write_bytes(b"of a driver that was killed")
    recipe = read(place, "./second")
    ran(recipe, store)
    old = {one.place for one in find(store, grace=0.0, registry=False).garbage}
    name = first.url.rpartition("/")[2]
    assert {place for place in old if place.startswith("pretrained")} == {
        f"pretrained/{name}",
        "pretrained/" + "a" * 32,
    }
    refs = store.folder("pretrained").folder("refs")
    assert name in {json.loads(refs.read(file))["digest"] for file in refs.list()}
    swept = {one.place: why for one, why in sweep(store, grace=0.0, registry=False, patience=1.0)}
    assert {why for place, why in swept.items() if place.startswith("pretrained")} == {""}
    assert len(store.folder("pretrained").folders()) == 2
    assert name not in {json.loads(refs.read(file))["digest"] for file in refs.list()}
    assert ran(recipe, store) == ((), [])
    assert plan(read(place, f"{REPO}@{COMMIT}"), store)["latents"].state == "run"
