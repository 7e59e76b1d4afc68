from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from cluster.storage import Storage
from pipelines.arrays import from_npy
from pipelines.dataset import Dataset, write_manifest
from pipelines.models import SnapshotFolder
from pipelines.stages.encode import Encode
from tests.pipelines import several, tiny
from tests.pipelines.stages.making import column, made

Inputs = dict[str, Dataset | SnapshotFolder]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    return {"images": tiny.images(folder / "images"), "autoencoder": tiny.autoencoder(folder / "autoencoder")}


@pytest.fixture(scope="module")
def stage() -> Encode:
    return Encode(images="images", autoencoder="vae", micro_batch=5, flips=True)


@pytest.fixture(scope="module")
def latents(stage: Encode, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made(stage, inputs, tmp_path_factory.mktemp("latents"))


def moments(inputs: Inputs, picture: np.ndarray) -> np.ndarray:
    snapshot = inputs["autoencoder"]
    assert isinstance(snapshot, SnapshotFolder)
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        found = snapshot.autoencoder().encode(pixels)
        return torch.cat([found.mean, found.std], 1)[0].numpy()


def test_moments_are_the_autoencoders_unscaled(inputs: Inputs, latents: Dataset) -> None:
    plain, flipped = column(latents, "moments.npy"), column(latents, "flipped.moments.npy")
    assert len(plain) == len(flipped) == tiny.TRAIN + tiny.HELD_OUT
    for n in (0, 11, 29):
        found = from_npy(plain[f"k{n:03d}"])
        assert found.dtype == np.float16
        assert found.shape == (4, 4, 4)
        np.testing.assert_allclose(found, moments(inputs, tiny.picture(n)), atol=2e-3, rtol=2e-3)
        mirrored = moments(inputs, tiny.picture(n)[:, ::-1])
        np.testing.assert_allclose(from_npy(flipped[f"k{n:03d}"]), mirrored, atol=2e-3, rtol=2e-3)


def test_company_changes_no_bit(stage: Encode, inputs: Inputs, latents: Dataset) -> None:
    shard = stage.plan(inputs)[0]
    rows = stage.rows(inputs, shard)
    for some in (rows[7:8], rows[2:9], rows[::3]):
        for sample in stage.open(inputs)(shard, some):
            place = latents.index(shard.name).keys.index(sample.key)
            for name, data in sample.members.items():
                assert latents.read_member(shard.name, place, name) == data


def test_statistics_are_those_of_drawn_latents_of_the_train_split(inputs: Inputs, latents: Dataset) -> None:
    keys = {key for s in latents.shards if s.split == "train" for key in latents.index(s.name).keys}
    assert len(keys) == tiny.TRAIN
    stored = np.stack([from_npy(d) for key, d in column(latents, "moments.npy").items() if key in keys])
    mean, std = np.split(stored.astype(np.float64), 2, axis=1)
    noise = np.random.default_rng(0).normal(size=(500, *mean.shape))
    drawn = (mean + std * noise).swapaxes(0, 2).reshape(2, -1)
    found = latents.manifest["statistics"]
    assert found["latents"]["mean"] == pytest.approx(mean.mean((0, 2, 3)).tolist(), abs=1e-9)
    assert found["latents"]["std"] == pytest.approx(drawn.std(1).tolist(), rel=0.01)
    assert found["shape"] == [2, 4, 4]
    assert found["resolution"] == tiny.SIZE
    assert found["autoencoder"] == inputs["autoencoder"].digest()


def test_without_flips_there_is_one_column(inputs: Inputs, latents: Dataset, tmp_path: Path) -> None:
    plain = made(Encode(images="images", autoencoder="vae", micro_batch=5), inputs, tmp_path)
    assert plain.columns == ["moments.npy"]
    assert column(plain, "moments.npy") == column(latents, "moments.npy")


@pytest.mark.parametrize(("sizes", "message"), [((16, 20), "differs in size"), ((18, 18), "factor 4")])
def test_sizes_that_do_not_go_are_said(
    sizes: tuple[int, int], message: str, inputs: Inputs, tmp_path: Path
) -> None:
    def members(key: str, n: int) -> dict[str, bytes]:
        data = io.BytesIO()
        Image.new("RGB", (sizes[n % 2],) * 2).save(data, "PNG")
        return {"png": data.getvalue()}

    images = tiny.dataset(tmp_path / "images", members)
    stage = Encode(images="images", autoencoder="vae", micro_batch=4)
    with pytest.raises(ValueError, match=message):
        made(stage, {**inputs, "images": images}, tmp_path / "latents")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return several.line(tmp_path_factory.mktemp("line"))


def test_each_size_has_moments_of_its_own_shape(line: Inputs) -> None:
    latents = line["latents"]
    assert isinstance(latents, Dataset)
    found = {key: from_npy(data) for key, data in column(latents, "moments.npy").items()}
    assert len(found) == tiny.TRAIN + tiny.HELD_OUT
    for n in range(len(found)):
        width, height = several.size(n)
        assert found[f"k{n:03d}"].shape == (4, height // 4, width // 4)
        np.testing.assert_allclose(
            found[f"k{n:03d}"], moments(line, several.picture(n)), atol=2e-3, rtol=2e-3
        )
    index = latents.index("00000")
    assert [(m["width"], m["height"]) for m in index.meta] == [several.size(n) for n in range(len(index))]


def test_statistics_of_several_sizes_weigh_each_pixel_alike(line: Inputs) -> None:
    latents = line["latents"]
    assert isinstance(latents, Dataset)
    arrays = [from_npy(data) for key, data in sorted(column(latents, "moments.npy").items())][: tiny.TRAIN]
    mean, std = np.split(np.concatenate([a.reshape(4, -1) for a in arrays], axis=1).astype(np.float64), 2)
    said = latents.manifest["statistics"]
    assert said["latents"]["mean"] == pytest.approx(mean.mean(1).tolist(), abs=1e-9)
    expected = np.sqrt((mean**2 + std**2).mean(1) - mean.mean(1) ** 2)
    assert said["latents"]["std"] == pytest.approx(expected.tolist(), rel=1e-9)
    assert said["sizes"] == [[*size, n] for size, n in zip(several.SIZES, several.COUNTS, strict=True)]
    # The square that has their area stands for them all.
    assert (said["shape"], said["resolution"]) == ([2, 4, 4], 16)


def test_company_of_any_size_changes_no_bit(line: Inputs) -> None:
    """Whatever rows a worker makes at once, and in however large batches: all are padded to `micro_batch`."""
    latents, stage = line["latents"], Encode(images="images", autoencoder="vae", micro_batch=4)
    assert isinstance(latents, Dataset)
    for shard in stage.plan(line):
        rows, index = stage.rows(line, shard), latents.index(shard.name)
        for some in (rows[:1], rows[3:8], rows[::3], rows[1::2]):
            samples = list(stage.open(line)(shard, some))
            assert [sample.key for sample in samples] == [row.key for row in some]
            for sample in samples:
                place = index.keys.index(sample.key)
                assert sample.members["moments.npy"] == latents.read_member(shard.name, place, "moments.npy")
                assert sample.meta == index.meta[place]


def test_one_that_was_made_when_all_had_one_size_is_made_again(line: Inputs, inputs: Inputs) -> None:
    """Its index would not say which size it has."""
    stage = Encode(images="images", autoencoder="vae")
    shard = stage.plan(line)[0]
    assert all(row.reads[-1] == "sized" for row in stage.rows(line, shard))
    assert not any("sized" in row.reads for row in stage.rows(inputs, shard))


def test_golden(inputs: Inputs, tmp_path: Path) -> None:
    """When this fails, the stage's output has changed: raise `Encode.version`, then write the new digest.

    Through the identity, whose arithmetic is the same on every processor.
    """
    storage = Storage.at(tmp_path / "identity")
    data = save({})
    storage.put_if_absent("autoencoder.safetensors", data)
    files = {"autoencoder.safetensors": hashlib.sha256(data).hexdigest()}
    record = {"task": "autoencoder", "autoencoder": {"kind": "identity"}, "files": files}
    write_manifest(storage, {"snapshot": record}, kind="snapshot")
    given = {**inputs, "autoencoder": SnapshotFolder.open(storage)}
    latents = made(Encode(images="images", autoencoder="vae", flips=True), given, tmp_path / "latents")
    found = from_npy(column(latents, "moments.npy")["k009"])
    truth = (tiny.picture(9).astype(np.float32) / 127.5 - 1).astype(np.float16).transpose(2, 0, 1)
    np.testing.assert_array_equal(found, np.concatenate([truth, np.zeros_like(truth)]))
    assert (Encode.version, latents.digest()[:16]) == (1, "6692c37498e332ea")
