"""Foreign autoencoders become snapshots: equal to diffusers' own, once, by content, or are refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cluster.storage import LocalStorage, Storage
from pipelines.dataset import MANIFEST
from pipelines.models import SnapshotFolder
from pipelines.pretrained.adoption import adopted
from pipelines.pretrained.autoencoder_folder import AutoencoderFolder
from pipelines.pretrained.folder import INDEX, WHOLE
from pipelines.stage import TooMany
from tests import s3
from tests.driver import Death
from tests.pipelines.pretrained import foreign

torch.set_num_threads(1)


def quiet(done: int, of: int) -> None:
    pass


def taken(reference: Path | str, store: Storage) -> SnapshotFolder:
    place = adopted(str(reference), store, fetch=quiet)
    assert place is not None
    return SnapshotFolder.open(place)


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "store")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.save(foreign.model(), tmp_path_factory.mktemp("foreign") / "vae")


@pytest.mark.parametrize("name", foreign.SETTINGS)
def test_it_encodes_and_decodes_as_diffusers_does(name: str, tmp_path: Path, store: Storage) -> None:
    theirs = foreign.model(name)
    found = taken(foreign.save(theirs, tmp_path / "vae"), store)
    ours = found.autoencoder()
    images = torch.randn(2, 3, 32, 48).clamp(-1, 1)
    with torch.no_grad():
        moments = ours.encode(images)
        wanted = foreign.moments(theirs, images)
        both = torch.cat([moments.mean, moments.std], dim=1)
        torch.testing.assert_close(both[:, : wanted.shape[1]], wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            ours.decode(moments.mean), theirs.decode(moments.mean).sample, atol=1e-5, rtol=1e-5
        )
    assert found.record["class"] == name
    assert found.record["resolution"] == (64 if name == "AutoencoderKL" else 512)
    assert found.storage.read("config.json") == (tmp_path / "vae" / "config.json").read_bytes()


def test_the_same_weights_are_the_same_wherever_they_come_from(
    vae: Path, tmp_path: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = foreign.model()
    sharded = foreign.save(made, tmp_path / "sharded", max_shard_size="60KB")
    assert len([*sharded.glob("*.safetensors")]) > 2
    pipeline = tmp_path / "pipeline"
    shutil.copytree(vae, pipeline / "vae")
    (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    cache = foreign.hub_cache(tmp_path / "hub", pipeline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    hub = f"{foreign.REPO}@{foreign.COMMIT}"
    first = taken(vae, store)
    for reference in (sharded, pipeline, hub, f"hub:{foreign.REPO}/vae@{foreign.COMMIT}"):
        found = taken(reference, store)
        assert found.digest() == first.digest()
        assert found.record["files"] == first.record["files"]
    others = [
        taken(foreign.save(foreign.model(seed=1), tmp_path / "other"), store),
        taken(foreign.save(foreign.model(sample_size=32), tmp_path / "resized"), store),
        taken(foreign.save(foreign.model().half(), tmp_path / "half", variant="fp16"), store),
    ]
    assert len({first.digest(), *(other.digest() for other in others)}) == 4
    half = Path(str(others[2].storage.local("autoencoder.safetensors")))
    assert {tensor.dtype for tensor in load_file(half).values()} == {torch.float16}
    assert others[2].autoencoder().encode(torch.zeros(1, 3, 8, 8)).mean.dtype == torch.float32
    shutil.copy(vae / WHOLE, tmp_path / "half" / WHOLE)  # a variant is taken only where there is nothing else
    assert taken(tmp_path / "half", store).digest() == first.digest()


@pytest.mark.slow
def test_a_folder_of_a_bucket_is_read_once(
    vae: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.serving() as endpoint:
        for name, value in s3.credentials(endpoint).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LATENTMILL_CACHE", f"{store.url}-cache")
        bucket = Storage.at(f"s3://{s3.new_bucket()}/models/vae")
        for path in vae.iterdir():
            bucket.put_if_absent(path.name, path)
        with pytest.raises(TooMany, match="run reads it in"):
            adopted(bucket.url, store)
        found = taken(bucket.url, store)
        assert found.digest() == taken(vae, store).digest()
        shutil.rmtree(f"{store.url}-cache")
        assert adopted(bucket.url, store) == found.storage
        assert not Path(f"{store.url}-cache").exists(), "the second time nothing was read"
        changed = {key: tensor + 1 for key, tensor in load_file(vae / WHOLE).items()}
        save_file(changed, Path(f"{store.url}.safetensors"))
        bucket.replace(WHOLE, Path(f"{store.url}.safetensors").read_bytes())
        assert taken(bucket.url, store).digest() != found.digest()


def test_a_folder_that_stands_still_is_read_once(
    vae: Path, tmp_path: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(vae, tmp_path / "vae")
    assert AutoencoderFolder.of(Storage.at(tmp_path / "vae"), "").stamp() is None, "it has changed just now"
    monkeypatch.setattr("pipelines.pretrained.folder.FRESH", 0.0)
    found = taken(tmp_path / "vae", store)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.weights.file_digest", lambda path: pytest.fail("it was read again"))
        assert adopted(str(tmp_path / "vae"), store) == found.storage
    times = (tmp_path / "vae" / WHOLE).stat()
    data = bytearray((tmp_path / "vae" / WHOLE).read_bytes())
    data[-1] ^= 1
    (tmp_path / "vae" / WHOLE).write_bytes(data)
    os.utime(tmp_path / "vae" / WHOLE, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(TooMany):
        adopted(str(tmp_path / "vae"), store)
    assert taken(tmp_path / "vae", store).digest() != found.digest()


def pickled(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "diffusion_pytorch_model.bin")


def truncated(folder: Path) -> None:
    (folder / WHOLE).write_bytes((folder / WHOLE).read_bytes()[:-1000])


def no_header(folder: Path) -> None:
    (folder / WHOLE).write_bytes(b"\xff" * 64)


def said(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))


def rewritten(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        tensors = load_file(folder / WHOLE)
        change(tensors)
        save_file(tensors, folder / WHOLE)

    return fault


def outside(folder: Path) -> None:
    (folder / WHOLE).rename(folder.parent / "outside.safetensors")
    (folder / INDEX).write_text('{"weight_map": {"x": "../outside.safetensors"}}')


def lost_shard(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "a-1.safetensors", "y": WHOLE}}))
    (folder / WHOLE).rename(folder / "a-2.safetensors")


BIAS = "encoder.conv_in.bias"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (
        pickled,
        "diffusion_pytorch_model.bin, a pickle, which can run code and is not read: convert it",
    ),
    "nothing": (lambda folder: (folder / WHOLE).unlink(), f"has no {WHOLE}."),
    "no config": (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
    "truncated": (truncated, f"{WHOLE} is damaged .*: get it again"),
    "no safetensors": (no_header, f"{WHOLE} is damaged .*: get it again"),
    "network": (
        lambda folder: said(folder, _class_name="UNet2DConditionModel"),
        "UNet2DConditionModel is not",
    ),
    "setting": (lambda folder: said(folder, act_fn="tanh"), "act_fn"),
    "kind": (
        lambda folder: said(folder, block_out_channels=7),
        "values of other kinds than diffusers writes",
    ),
    "another config": (
        lambda folder: said(folder, layers_per_block=2),
        "not those that its config names: .*missing",
    ),
    "wider": (
        lambda folder: said(folder, latent_channels=6),
        r"is \[8, .*\], and by its config \[12, ",
    ),
    "unknown": (rewritten(lambda t: t.update(extra=t[BIAS].clone())), r"1 unknown \(extra\)"),
    "lacking": (rewritten(lambda t: t.pop(BIAS)), rf"1 missing \({BIAS}\)"),
    "not a number": (
        rewritten(lambda t: t[BIAS].fill_(float("nan"))),
        f"{BIAS} holds infinite numbers or none",
    ),
    "whole numbers": (rewritten(lambda t: t.update({BIAS: t[BIAS].int()})), f"{BIAS} is torch.int32"),
    "outside": (outside, "names files that are not safetensors beside it"),
    "lost shard": (lost_shard, "lacks a-1.safetensors"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_of_no_use_is_refused_in_one_line(
    name: str, vae: Path, tmp_path: Path, store: Storage
) -> None:
    fault, message = FAULTS[name]
    folder = tmp_path / "vae"
    shutil.copytree(vae, folder)
    fault(folder)
    with pytest.raises(ValueError, match=message) as raised:
        adopted(str(folder), store, fetch=quiet)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)
    assert not [*store.files()], "nothing of it is in the store"


def test_a_files_own_words_are_not_kept(vae: Path, tmp_path: Path, store: Storage) -> None:
    shutil.copytree(vae, tmp_path / "vae")
    save_file(load_file(vae / WHOLE), tmp_path / "vae" / WHOLE, metadata={"said": "<script>"})
    found = taken(tmp_path / "vae", store)
    with safe_open(found.storage.local("autoencoder.safetensors"), "pt") as file:
        assert not file.metadata()
    assert found.digest() == taken(vae, store).digest()


def test_what_is_neither_finished_nor_foreign_is_left_to_others(tmp_path: Path, store: Storage) -> None:
    assert adopted(str(tmp_path), store, fetch=quiet) is None
    assert adopted(str(tmp_path / "nowhere"), store, fetch=quiet) is None


def driver(folder: str, store: str, death: Death | None) -> None:
    torch.set_num_threads(1)
    if death:
        death.arm(Path(store))
    adopted(folder, Storage.at(store), fetch=quiet)


@pytest.mark.parametrize(
    "death",
    [
        Death(file="pretrained/*/autoencoder.safetensors", moment="within"),
        Death(file="pretrained/*/autoencoder.safetensors", moment="after"),
        Death(file="pretrained/*/manifest.json", moment="within"),
    ],
    ids=["within the weights", "behind the weights", "within the manifest"],
)
def test_a_killed_driver_leaves_nothing_that_counts(
    death: Death, vae: Path, store: Storage, tmp_path: Path
) -> None:
    process = multiprocessing.get_context("fork").Process(target=driver, args=(str(vae), store.url, death))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(TooMany):
        adopted(str(vae), store)
    found = taken(vae, store)
    whole = taken(vae, Storage.at(tmp_path / "unbroken"))
    assert found.read("autoencoder.safetensors") == whole.read("autoencoder.safetensors")
    assert found.digest() == whole.digest()


def test_weights_that_another_left_unfinished_with_other_bytes_do_no_harm(vae: Path, store: Storage) -> None:
    whole = taken(vae, store)
    assert isinstance(whole.storage, LocalStorage)
    whole.storage.delete(MANIFEST)
    whole.storage.replace("autoencoder.safetensors", b"of a safetensors that wrote them otherwise")
    assert taken(vae, store).autoencoder()


def test_two_drivers_at_once_make_one_snapshot(vae: Path, store: Storage) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=driver, args=(str(vae), store.url, None)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert taken(vae, store).autoencoder()
    assert [name for name in os.listdir(f"{store.url}/pretrained") if name != "refs"] == [
        taken(vae, store).storage.url.rpartition("/")[2]
    ]
