"""Models of the hub: from its cache without a network, from a server that answers as it does, and by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cluster.storage import Storage
from pipelines import config
from pipelines.models import SnapshotFolder
from pipelines.places import at_hand, fetching
from pipelines.pretrained import hub
from pipelines.pretrained.adoption import adopted
from pipelines.pretrained.folder import WHOLE
from pipelines.pretrained.reference import hub_model
from pipelines.stage import TooMany
from tests.pipelines.pretrained import foreign
from tests.pipelines.pretrained.foreign import COMMIT, OTHER, REPO

torch.set_num_threads(1)
PINNED = f"{REPO}@{COMMIT}"
TOKEN = "hf_thetokenthatmustnotbeseen"


def quiet(done: int, of: int) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "store")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = foreign.save(foreign.model(), tmp_path_factory.mktemp("foreign") / "vae")
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("what nobody reads")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def online(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def taken(reference: str, store: Storage) -> SnapshotFolder:
    place = adopted(reference, store, fetch=quiet)
    assert place is not None
    return SnapshotFolder.open(place)


def refused(reference: str, store: Storage) -> str:
    with pytest.raises(ValueError, match=r"\.$") as raised:
        adopted(reference, store, fetch=quiet, ask=True)
    assert not isinstance(raised.value, TooMany)
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)
    return str(raised.value)


def test_the_cache_is_enough_once_and_then_the_store_alone(vae: Path, cache: Path, store: Storage) -> None:
    foreign.hub_cache(cache, vae)
    with pytest.raises(TooMany, match=f"{REPO}@{COMMIT[:7]} is not fetched yet: run fetches it"):
        adopted(PINNED, store)
    assert not [*store.files()]
    found = taken(PINNED, store)
    shutil.rmtree(cache)
    assert adopted(PINNED, store) == found.storage
    assert taken(f"hub:{PINNED}", store).autoencoder()
    for name in ("autoencoder.safetensors", "config.json"):
        assert not Path(found.storage.local(name)).is_symlink()
    found.storage.delete("manifest.json")
    assert "HF_HUB_OFFLINE is set" in refused(PINNED, store), "what is not whole does not count"


def test_a_folder_of_a_repository_and_what_a_cache_lacks(vae: Path, cache: Path, store: Storage) -> None:
    foreign.hub_cache(cache, vae, inner="deep/vae")
    found = taken(f"{REPO}/deep/vae@{COMMIT}", store)
    assert taken(f"{REPO}/deep@{COMMIT}", store).storage == found.storage, "a pipeline's autoencoder"
    for reference in (f"{REPO}/vae@{COMMIT}", f"{REPO}/deep@{OTHER}", f"someone/else@{COMMIT}"):
        line = refused(reference, store)
        assert "HF_HUB_OFFLINE is set" in line
        assert "hf download" in line
    (cache / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT / "deep" / "vae" / WHOLE).unlink()
    assert f"The cache has no {WHOLE}" in refused(f"{REPO}/deep/vae@{COMMIT}", Storage.at(f"{store.url}-2"))


def test_a_server_is_asked_for_what_is_read_and_once(
    vae: Path, cache: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    with foreign.hub_server(vae) as (address, asked):
        online(monkeypatch, address)
        place = adopted(PINNED, store, fetch=lambda done, of: told.append((done, of)))
        assert place is not None
        fetched = {line.rpartition("/")[2] for line in asked if line.startswith("GET")}
        assert fetched == {"config.json", WHOLE}, "and neither pickles nor what nobody reads"
        assert told
        before = len(asked)
        assert adopted(PINNED, store, fetch=quiet) == place
        assert taken(PINNED, Storage.at(f"{store.url}-2")).record["files"]
        assert len(asked) == before
        assert f"no commit {OTHER} of it" in refused(f"{REPO}@{OTHER}", store)
        assert "The hub has no someone/else for you" in refused(f"someone/else@{COMMIT}", store)
        assert "has no config.json" in refused(f"{REPO}/unet@{COMMIT}", store)
        for unpinned in (f"{REPO}@main", f"hub:{REPO}", f"{REPO}@{COMMIT[:12]}"):
            assert f"write {PINNED}, which it is now." in refused(unpinned, store)
    SnapshotFolder.open(place)
    files = [store.read(name) for name in store.files()]
    assert not any(TOKEN.encode() in data for data in files)


def test_a_network_is_refused_before_it_is_fetched(
    vae: Path, tmp_path: Path, cache: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    shutil.copy(vae / WHOLE, tmp_path / "unet")
    with foreign.hub_server(tmp_path / "unet") as (address, asked):
        online(monkeypatch, address)
        assert "UNet2DConditionModel is not supported" in refused(PINNED, store)
        assert not any(WHOLE in line for line in asked)
        (tmp_path / "unet" / WHOLE).unlink()
        shutil.copy(vae / "config.json", tmp_path / "unet")
        shutil.rmtree(cache)
        assert f"has no {WHOLE} (weights in pickles are not read)" in refused(PINNED, store)


def test_unpinned_names_are_refused_without_a_network_too(cache: Path, store: Storage) -> None:
    for unpinned in (REPO, f"hub:{REPO}@main", f"{REPO}/vae@v1.0"):
        line = refused(unpinned, store)
        assert "lacks its commit" in line
        assert "@<the 40 hex digits of a commit>" in line
    assert "no model of the hub" in refused("hub:../../etc@x", store)


RECIPE = """
name: line
stages:
  images: {{stage: ingest, source: {{kind: folder, path: images}}, size: 16}}
  latents: {{stage: encode, images: images, autoencoder: {reference}}}
"""


def test_a_recipes_reference_is_a_path_where_there_is_one(tmp_path: Path) -> None:
    def read(reference: str) -> str:
        text = RECIPE.format(reference=reference)
        recipe = config.parse(text, name="line.yaml", folder=tmp_path)
        assert config.parse(recipe.text, name="again", folder=Path("/nowhere")).stages == recipe.stages
        return recipe.stages["latents"].named()["autoencoder"] or ""

    assert read(f"{REPO}/vae@{COMMIT}") == f"hub:{REPO}/vae@{COMMIT}"
    assert read(f"hub:{REPO}@{COMMIT}") == f"hub:{REPO}@{COMMIT}"
    assert read(f"{REPO}@main") == f"hub:{REPO}@main"
    assert read(REPO) == f"hub:{REPO}"
    assert read(f"./{REPO}") == str(tmp_path / REPO)
    assert read("/models/sd-vae") == "/models/sd-vae"
    assert read("s3://bucket/vae@1") == "s3://bucket/vae@1"
    (tmp_path / "someone").mkdir()
    assert read(REPO) == str(tmp_path / REPO), "it may be a path that is not there yet"
    assert read(PINNED) == f"hub:{PINNED}"
    (tmp_path / PINNED).mkdir()
    assert read(PINNED) == str(tmp_path / PINNED)


def test_encoders_come_from_the_hub_by_commit(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "encoder"
    files.mkdir()
    for name in ("config.json", "tokenizer.json", "merges.txt", "spiece.model", "model.safetensors"):
        (files / name).write_text("{}")
    (files / "pytorch_model.bin").write_text("a pickle")
    reference = f"hub:{PINNED}"
    with fetching(allowed=False), pytest.raises(TooMany, match="run fetches it"):
        at_hand(reference)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        at_hand(reference)
    with pytest.raises(ValueError, match="lacks its commit"):
        at_hand(f"hub:{REPO}")
    with foreign.hub_server(files) as (address, _):
        online(monkeypatch, address)
        place = at_hand(reference)
        assert {path.name for path in place.iterdir()} == {path.name for path in files.iterdir()} - {
            "pytorch_model.bin"
        }
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with fetching(allowed=False):
        assert at_hand(reference) == place
    assert place == cache / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    assert (place / "tokenizer.json").read_text() == "{}"
    assert at_hand(Path(reference)) == place
    assert hub.cached(hub_model(reference))
