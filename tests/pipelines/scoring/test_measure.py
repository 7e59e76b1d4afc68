"""Images of several sizes are measured as each would be alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.arrays import pixels
from pipelines.scoring.measure import Job, Measure
from tests.pipelines import several, tiny
from tests.pipelines.stages.test_evaluate import MeanColours


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line")
    inputs = {**several.line(folder), "text": None}
    return {**inputs, "model": tiny.run(tiny.train(text=None, images_seen=8), tiny.session(folder, inputs))}


@pytest.fixture
def measured(line: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    return Measure(
        features=MeanColours(),  # pyright: ignore[reportArgumentType]
        datasets={name: line[name].storage.url for name in ("images", "latents")},
        model=line["model"].storage.url,
        micro_batch=4,
        draws=2,
        seed=0,
    )()


@pytest.mark.parametrize("what", ["images", "reconstructions", "thumbnails", "losses"])
def test_company_of_other_sizes_changes_nothing(line: dict[str, Any], measured: Any, what: Any) -> None:
    shard = line["images"].shards[-1].name
    places = tuple((shard, n) for n in range(tiny.HELD_OUT))
    given = {"dataset": "images", "decoded": what == "thumbnails"}
    _, together = measured(Job(number=0, what=what, places=places, indices=tuple(range(6)), **given))
    for n, place in enumerate(places):
        _, alone = measured(Job(number=1, what=what, places=(place,), indices=(n,), **given))
        np.testing.assert_array_equal(together[n], alone[0])
    if what == "images":
        for n, (name, row) in enumerate(places):
            image = pixels(line["images"].read_member(name, row, "image")).astype(np.float32) / 255
            np.testing.assert_allclose(together[n, :3], image.mean((0, 1)), atol=1e-6)
