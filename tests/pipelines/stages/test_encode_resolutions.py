"""Encode's further columns, precisions and tiles, and a training on one of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.latents import LatentStatistics
from pipelines import sampling
from pipelines.arrays import from_npy
from pipelines.dataset import Dataset
from pipelines.encoding.pictures import shrink
from pipelines.models import SnapshotFolder
from pipelines.stages.encode import Encode
from tests.pipelines import several, tiny
from tests.pipelines.stages.making import column, made

Inputs = dict[str, Any]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    return {"images": tiny.images(folder / "images"), "autoencoder": tiny.autoencoder(folder / "autoencoder")}


@pytest.fixture(scope="module")
def latents(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    stage = Encode(images="images", autoencoder="vae", micro_batch=5, flips=True, also=(8,))
    return made(stage, inputs, tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("bucketed")
    given: Inputs = {
        "images": several.images(folder / "images"),
        "autoencoder": tiny.autoencoder(folder / "autoencoder"),
        "text": tiny.text(folder / "text"),
    }
    stage = Encode(images="images", autoencoder="vae", micro_batch=4, also=(8,), flips=True)
    return {**given, "latents": made(stage, given, folder / "latents")}


def moments(snapshot: SnapshotFolder, picture: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        found = snapshot.autoencoder().encode(pixels)
        return torch.cat([found.mean, found.std], 1)[0].numpy()


def test_each_resolution_has_its_column_and_statistics(inputs: Inputs, latents: Dataset) -> None:
    plain, flipped = column(latents, "at8.moments.npy"), column(latents, "flipped.at8.moments.npy")
    for n in (0, 11, 29):
        small = shrink(tiny.picture(n), (8, 8))
        for found, picture in ((plain, small), (flipped, small[:, ::-1])):
            np.testing.assert_allclose(
                from_npy(found[f"k{n:03d}"]), moments(inputs["autoencoder"], picture), atol=2e-3, rtol=2e-3
            )
    said = latents.manifest["statistics"]
    assert said["shape"] == [2, 4, 4]
    small = said["resolutions"]["8"]
    assert (small["shape"], small["resolution"]) == ([2, 2, 2], 8)
    arrays = np.stack([from_npy(plain[f"k{n:03d}"]) for n in range(tiny.TRAIN)]).astype(np.float64)
    mean, std = np.split(arrays, 2, axis=1)
    assert small["latents"]["mean"] == pytest.approx(mean.mean((0, 2, 3)).tolist(), abs=1e-9)
    expected = np.sqrt((mean**2 + std**2).mean((0, 2, 3)) - mean.mean((0, 2, 3)) ** 2)
    assert small["latents"]["std"] == pytest.approx(expected.tolist(), rel=1e-9)


def test_further_resolutions_leave_the_first_as_it_was(
    inputs: Inputs, latents: Dataset, tmp_path: Path
) -> None:
    alone = made(Encode(images="i", autoencoder="v", micro_batch=5, flips=True), inputs, tmp_path)
    for name in ("moments.npy", "flipped.moments.npy"):
        assert column(alone, name) == column(latents, name)
    assert "resolutions" not in alone.manifest["statistics"]
    assert alone.manifest["statistics"] == {
        k: v for k, v in latents.manifest["statistics"].items() if k != "resolutions"
    }


def test_threads_change_no_byte(inputs: Inputs, latents: Dataset, tmp_path: Path) -> None:
    stage = Encode(images="i", autoencoder="v", micro_batch=5, flips=True, also=(8,), decoders=5)
    assert made(stage, inputs, tmp_path).digest() == latents.digest()


def test_defaults_are_the_stage_as_it_was() -> None:
    stage = Encode(images="images", autoencoder="vae", decoders=7)
    assert set(stage.meaning()) == {"flips", "micro_batch"}


def test_several_sizes_are_shrunk_by_area(bucketed: Inputs) -> None:
    latents = bucketed["latents"]
    small = column(latents, "at8.moments.npy")
    expected = {(8, 24): (1, 3), (16, 16): (2, 2), (24, 8): (3, 1)}
    for n in range(len(small)):
        across, down = expected[several.size(n)]
        found = from_npy(small[f"k{n:03d}"])
        assert found.shape == (4, down, across)
        picture = shrink(several.picture(n), (4 * across, 4 * down))
        np.testing.assert_allclose(found, moments(bucketed["autoencoder"], picture), atol=2e-3, rtol=2e-3)
    said = latents.manifest["statistics"]["resolutions"]["8"]
    sizes = [(4 * across, 4 * down) for across, down in expected.values()]
    assert said["sizes"] == [[*size, n] for size, n in zip(sizes, several.COUNTS, strict=True)]
    assert (said["shape"], said["resolution"]) == ([2, 2, 2], 8)


@pytest.mark.parametrize(
    ("also", "message"), [((6,), "no multiple of the factor 4"), ((16,), "the images have 16 px")]
)
def test_resolutions_that_do_not_go_are_said(
    also: tuple[int, ...], message: str, inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        made(Encode(images="images", autoencoder="vae", also=also), inputs, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"also": (8, 8)}, "each smaller resolution once"),
        ({"decoders": 0}, "decoders"),
        ({"tile": 8}, "tile"),
    ],
)
def test_fields_that_make_no_sense_are_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encode(images="images", autoencoder="vae", **fields)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near(precision: Any, inputs: Inputs, latents: Dataset, tmp_path: Path) -> None:
    stage = Encode(images="i", autoencoder="v", micro_batch=5, precision=precision)
    found = made(stage, inputs, tmp_path)
    assert found.manifest["retried"] == 0
    assert "notes" not in found.manifest
    for key, data in column(found, "moments.npy").items():
        exact = from_npy(column(latents, "moments.npy")[key])
        np.testing.assert_allclose(from_npy(data), exact, atol=5e-2, rtol=5e-2)
    assert found.digest() != latents.digest()


def test_what_overflows_is_counted_and_what_never_is_finite_is_rejected(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer is made so large that bright squares overflow fp16; one image is no number at all."""

    whole = SnapshotFolder.autoencoder

    def load(folder: SnapshotFolder) -> Any:
        network = whole(folder)
        encode = type(network).encode

        def overflowing(self: Any, images: Any) -> Any:
            found = encode(self, images)
            bright = (images.amax((1, 2, 3)) + 1) * 35_000  # a white pixel is 70,000
            over = (bright - bright)[:, None, None, None]  # not a number where it overflowed
            broken = images[:, 0, -1, -1] > 0.99
            mean = torch.where(broken[:, None, None, None], torch.nan, found.mean + over)
            return dataclasses.replace(found, mean=mean)

        monkeypatch.setattr(type(network), "encode", overflowing)
        return network

    monkeypatch.setattr(SnapshotFolder, "autoencoder", load)

    def picture(n: int) -> np.ndarray:
        image = tiny.picture(n).clip(0, 200)
        image[0, 0] = 255 if n % 3 == 0 else 100
        image[-1, -1] = 255 if n == 7 else 100
        return image

    def members(key: str, n: int) -> dict[str, bytes]:
        from pipelines.pictures import encode

        return {"png": encode(picture(n), "png")}

    given = {**inputs, "images": tiny.dataset(tmp_path / "images", members)}
    stage = Encode(images="i", autoencoder="v", micro_batch=5, precision="float16")
    found = made(stage, given, tmp_path / "latents")
    again = {n for n in range(30) if n % 3 == 0}
    assert found.manifest["retried"] == len(again)
    assert found.manifest["notes"] == ["10 images overflowed in float16 and were encoded in float32."]
    assert found.manifest["counts"]["reasons"] == {"not_finite": 1}
    kept = column(found, "moments.npy")
    assert set(kept) == {f"k{n:03d}" for n in range(30) if n != 7}
    assert all(np.isfinite(from_npy(data)).all() for data in kept.values())
    # Retried ones are those of float32, to the bit, whatever the others of their batch were.
    exact = column(
        made(dataclasses.replace(stage, precision="float32"), given, tmp_path / "exact"), "moments.npy"
    )
    same = {n for n in range(30) if n != 7 and kept[f"k{n:03d}"] == exact[f"k{n:03d}"]}
    assert again <= same
    assert len(same) < 29


def test_large_images_go_through_in_tiles(inputs: Inputs, tmp_path: Path) -> None:
    """Of sides that are no multiple of the tile; equal to the whole, as the network sees a limited way."""
    side = (76, 132)

    def members(key: str, n: int) -> dict[str, bytes]:
        from pipelines.pictures import encode

        return {"png": encode(np.random.default_rng(n).integers(0, 255, (*side, 3), np.uint8), "png")}

    given = {**inputs, "images": tiny.dataset(tmp_path / "images", members)}
    whole = made(Encode(images="i", autoencoder="v", micro_batch=4), given, tmp_path / "whole")
    tiled = made(Encode(images="i", autoencoder="v", micro_batch=4, tile=64), given, tmp_path / "tiled")
    assert Encode(images="i", autoencoder="v", tile=64).meaning()["tile"] == 64
    for key, data in column(whole, "moments.npy").items():
        found = from_npy(column(tiled, "moments.npy")[key])
        np.testing.assert_allclose(found, from_npy(data), atol=1e-3)
    assert tiled.manifest["statistics"]["shape"] == [2, 19, 33]


def test_drawing_decodes_large_images_in_tiles(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "TILE", 64)
    autoencoder, calls = inputs["autoencoder"].autoencoder().requires_grad_(False), []
    model = sampling.LatentModel(
        denoiser=lambda x_t, t, conditioning: x_t,  # type: ignore[arg-type]
        autoencoder=autoencoder,
        statistics=LatentStatistics(mean=(0.0, 0.0), std=(1.0, 1.0)),
        shape=(2, 24, 24),
        classes=0,
        text_width=None,
        device=torch.device("cpu"),
    )
    decode = autoencoder.decode
    autoencoder.decode = lambda z: calls.append(z.shape) or decode(z)
    latents = torch.randn(1, 2, 8, 24)
    torch.testing.assert_close(model.tiled.decode(latents), decode(latents), atol=1e-5, rtol=1e-5)
    assert len(calls) > 1
    assert set(calls) == {(1, 2, 8, 16)}


def test_a_model_is_trained_at_a_smaller_resolution(
    bucketed: Inputs, inputs: Inputs, latents: Dataset, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"text": None, "images": None, "flips": True, "resolution": 8, "images_seen": 16}
    stage = tiny.train(**fields, network=dataclasses.replace(tiny.NETWORK, patch=1))
    assert stage.columns("latents") == ("at8.moments.npy", "flipped.at8.moments.npy")
    given = {"latents": latents, "autoencoder": inputs["autoencoder"]}
    record = tiny.run(stage, tiny.session(tmp_path / "one", given)).record
    said = latents.manifest["statistics"]["resolutions"]["8"]
    assert (record["resolution"], record["latent_shape"]) == (8, [2, 2, 2])
    assert record["statistics"] == said["latents"]

    given = {"latents": bucketed["latents"], "autoencoder": bucketed["autoencoder"]}
    record = tiny.run(stage, tiny.session(tmp_path / "several", given)).record
    assert record["resolution"] == 8
    assert [size[:2] for size in record["sizes"]] == [[4, 12], [8, 8], [12, 4]]
    with pytest.raises(
        ValueError, match=r"latents of 16 px \(leave `resolution` out for it\), 8 px, and none of 12"
    ):
        tiny.run(dataclasses.replace(stage, resolution=12), tiny.session(tmp_path / "none", given))
    with pytest.raises(ValueError, match="leave `resolution` out"):
        tiny.train_upscaler(resolution=8)
