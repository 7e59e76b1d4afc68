from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.mapping import InlineExecutor
from pipelines.arrays import to_npy
from pipelines.dataset import Dataset
from pipelines.encoding.columns import column, regrouped, statistics_at, stored_resolution
from pipelines.encoding.statistics import Summing
from pipelines.stages import encode
from pipelines.stages.encode import Encode
from tests.pipelines import tiny


def array(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(n, 1 + n, (4, 3, 2)).astype(np.float16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("latents")
    return tiny.dataset(folder, lambda key, n: {"moments.npy": to_npy(array(n))})


def test_a_workers_sums_are_those_of_the_shard(dataset: Dataset) -> None:
    given = dataset.manifest["shards"][1]
    call = pickle.loads(pickle.dumps(Summing(dataset.storage, ("moments.npy",))))()
    sums = call(given)["moments.npy"]
    mean, std = np.split(np.stack([array(n) for n in range(12, 24)]).astype(np.float64), 2, axis=1)
    assert sums.shapes == Counter({(2, 3, 2): 12})
    assert sums.latents.count == 12 * 6
    np.testing.assert_allclose(sums.latents.first, mean.sum((0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(sums.latents.second, (mean**2 + std**2).sum((0, 2, 3)), rtol=1e-14)


def test_large_datasets_are_summed_by_workers_to_the_same(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"images": tiny.images(tmp_path / "images"), "autoencoder": tiny.autoencoder(tmp_path / "vae")}
    stage, seen = Encode(images="images", autoencoder="vae"), []

    def spread(factory: Any, items: Sequence[Any]) -> list[Any]:
        seen.extend(item["name"] for item in items)
        found = dict(InlineExecutor().map(factory, items, resources=stage.resources, name="sums"))
        return [found[n] for n in range(len(items))]

    here = stage.gathered(inputs, dataset, spread)
    assert seen == []
    monkeypatch.setattr(encode, "_BYTES", 0)
    assert stage.gathered(inputs, dataset, spread) == here == stage.finish(inputs, dataset)
    assert seen == ["00000", "00001"]  # the train split's


def test_statistics_of_a_resolution() -> None:
    said = {"resolution": 64, "shape": [4, 8, 8], "resolutions": {"32": {"shape": [4, 4, 4]}}}
    assert statistics_at(said, None) is said
    assert statistics_at(said, 32) == {"shape": [4, 4, 4]}
    with pytest.raises(ValueError, match=r"latents of 64 px \(leave .*\), 32 px, and none of 48: name it in"):
        statistics_at(said, 48)
    assert [stored_resolution(said, n) for n in (64, 32, 48, None)] == [None, 32, None, None]
    assert column() == "moments.npy"
    assert column(32, flipped=True) == "flipped.at32.moments.npy"


def test_groups_that_shrink_to_one_size_are_one() -> None:
    groups = {(40, 80): np.array([1, 4]), (48, 80): np.array([0, 3]), (80, 40): np.array([2])}
    found = regrouped(groups, lambda size: (16, 32) if size[0] < size[1] else (32, 16))
    assert {size: rows.tolist() for size, rows in found.items()} == {(16, 32): [0, 1, 3, 4], (32, 16): [2]}
