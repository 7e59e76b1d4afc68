from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from diffusion.metrics import neighbours
from diffusion.metrics.neighbours import nearest, radii


@pytest.fixture(autouse=True, params=[5, 256])
def _rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "_ROWS", request.param)


def test_same_as_scikit_learn():
    query, reference = torch.randn(23, 6), torch.randn(41, 6)
    distance, index = NearestNeighbors(n_neighbors=1).fit(reference.double()).kneighbors(query.double())
    found = nearest(query, reference)
    assert found.index.tolist() == index[:, 0].tolist()
    torch.testing.assert_close(found.distance, torch.from_numpy(distance[:, 0]))


def test_a_copy_is_at_distance_zero_however_long_its_vector():
    reference = 1e4 + torch.randn(60, 300)
    found = nearest(reference[[7, 50]], reference)
    assert found.distance.tolist() == [0, 0]
    assert found.index.tolist() == [7, 50]


@pytest.mark.parametrize("k", [1, 3])
def test_radii_reach_to_the_kth_other_sample(k: int):
    features = torch.randn(17, 4)
    features[3] = features[9]  # a duplicate is another sample, at distance 0
    distance, _ = NearestNeighbors(n_neighbors=k + 1).fit(features.double()).kneighbors(features.double())
    torch.testing.assert_close(radii(features, k), torch.from_numpy(distance[:, k]))


def test_radii_take_enough_samples():
    with pytest.raises(ValueError, match="more than 3 samples, not 3"):
        radii(torch.randn(3, 2), 3)
