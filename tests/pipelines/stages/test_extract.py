from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.arrays import from_npy
from pipelines.embedders import EfficientNetImages
from pipelines.extractors import EfficientNetMaps, OpenClipMaps, OwnNetwork
from pipelines.stages.extract import Extract
from tests.pipelines import several, tiny
from tests.pipelines.stages.making import column, made

NETWORKS = """
import torch

class Net(torch.nn.Module):
    def forward(self, images):
        found = torch.nn.functional.avg_pool2d(images, 4)
        if BROKEN:
            found = torch.where(images.mean((1, 2, 3), keepdim=True) > images.mean(), found / 0, found)
        return found

def whole():
    globals()["BROKEN"] = False
    return Net()

def broken():
    globals()["BROKEN"] = True
    return Net()
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "extract_networks.py").write_text(NETWORKS)
    return tmp_path


def test_features_are_the_networks_in_any_company(own: Path, tmp_path: Path) -> None:
    inputs: dict[str, Any] = {"images": tiny.images(tmp_path / "images")}
    network = OwnNetwork(function="extract_networks:whole", path=str(own))
    found = []
    for n in (1, 5):
        stage = Extract(images="images", network=network, grid=2, micro_batch=n)
        dataset = made(stage, inputs, tmp_path / f"features{n}")
        assert dataset.manifest["statistics"]["features"]["shape"] == [3, 2, 2]
        found.append(column(dataset, "features.npy"))
    assert found[0] == found[1]
    assert len(found[0]) == tiny.TRAIN + tiny.HELD_OUT
    picture = torch.from_numpy(tiny.picture(7).copy()).permute(2, 0, 1)[None].float() / 255
    expected = torch.nn.functional.adaptive_avg_pool2d(picture, 2)[0].half().numpy()
    np.testing.assert_allclose(from_npy(found[0]["k007"]), expected, atol=1e-3)


def test_what_is_not_finite_is_rejected_by_that_name(own: Path, tmp_path: Path) -> None:
    inputs: dict[str, Any] = {"images": tiny.images(tmp_path / "images")}
    network = OwnNetwork(function="extract_networks:broken", path=str(own))
    dataset = made(Extract(images="images", network=network), inputs, tmp_path / "features")
    reasons = [reason for shard in dataset.shards for reason in dataset.index(shard.name).reasons]
    assert 0 < reasons.count("not_finite") < len(reasons)


def test_pooled_features_are_what_embed_has_less_their_length(tmp_path: Path) -> None:
    inputs: dict[str, Any] = {"images": tiny.images(tmp_path / "images")}
    stage = Extract(images="images", network=EfficientNetMaps(layer="pooled"), micro_batch=8)
    found = column(made(stage, inputs, tmp_path / "features"), "features.npy")
    from PIL import Image

    embedder = EfficientNetImages().build(micro_batch=8)
    expected = embedder.encode([Image.fromarray(tiny.picture(n)) for n in range(4)])
    for n in range(4):
        own = from_npy(found[f"k{n:03d}"]).astype(np.float32)
        np.testing.assert_allclose(own / np.linalg.norm(own), expected[n], atol=2e-3)


def test_sizes_may_differ(own: Path, tmp_path: Path) -> None:
    images = several.images(tmp_path / "images")
    network = OwnNetwork(function="extract_networks:whole", path=str(own))
    dataset = made(
        Extract(images="images", network=network, grid=2), {"images": images}, tmp_path / "features"
    )
    shapes = {from_npy(data).shape for data in column(dataset, "features.npy").values()}
    assert shapes == {(3, 2, 2)}


def test_mistakes_are_told_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="no places"):
        Extract(images="i", network=EfficientNetMaps(layer="pooled"), grid=4)
    with pytest.raises(ValueError, match="no network uses"):
        Extract(images="i", clip="c")
    assert Extract(images="i", clip="c", network=OpenClipMaps()).external() == {}
    with pytest.raises(ValueError, match="at least 1"):
        Extract(images="i", micro_batch=0)
